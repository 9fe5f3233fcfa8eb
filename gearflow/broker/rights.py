"""Which rights packets, reserved functions, their requests and text commands need.

Whatever is not in these tables needs all rights. ``guard`` applies them to connections whose token has fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from gearflow.protocol import admin
from gearflow.protocol.constants import PacketType
from gearflow.protocol.jobs import BulkRequest
from gearflow.protocol.limits import LimitRequest, PolicyRequest
from gearflow.protocol.rights import ALL, Right, right_words
from gearflow.protocol.schedules import ScheduleRequest
from gearflow.protocol.server_calls import DeadRequest, InfoRequest, Message, StreamRequest
from gearflow.protocol.workers import WorkersRequest

REFUSED: Final = "refused, as the token of the connection has no right to it: %s"
"""What is logged, with the rights and the name of the token as the subject."""

Needed: TypeAlias = Right
"""Rights of which one is enough."""

_EVERYONE: Final = ALL

_READERS: Final = Right.SUBMIT | Right.VIEW
"""They may look at single jobs, which a client does that waits for its own."""

SUBMISSIONS: Final = {  # packet type -> background
    PacketType.SUBMIT_JOB: False,
    PacketType.SUBMIT_JOB_HIGH: False,
    PacketType.SUBMIT_JOB_LOW: False,
    PacketType.SUBMIT_REDUCE_JOB: False,
    PacketType.SUBMIT_JOB_BG: True,
    PacketType.SUBMIT_JOB_HIGH_BG: True,
    PacketType.SUBMIT_JOB_LOW_BG: True,
    PacketType.SUBMIT_JOB_EPOCH: True,
    PacketType.SUBMIT_REDUCE_JOB_BACKGROUND: True,
}

PACKETS: Final[Mapping[PacketType, Needed]] = {
    **dict.fromkeys(SUBMISSIONS, Right.SUBMIT),  # unless the function is a reserved one
    PacketType.CAN_DO: Right.WORK,
    PacketType.CAN_DO_TIMEOUT: Right.WORK,
    PacketType.CANT_DO: Right.WORK,
    PacketType.RESET_ABILITIES: Right.WORK,
    PacketType.PRE_SLEEP: Right.WORK,
    PacketType.GRAB_JOB: Right.WORK,
    PacketType.GRAB_JOB_UNIQ: Right.WORK,
    PacketType.GRAB_JOB_ALL: Right.WORK,
    PacketType.WORK_DATA: Right.WORK,
    PacketType.WORK_WARNING: Right.WORK,
    PacketType.WORK_STATUS: Right.WORK | _READERS,  # a reader of parts sends how far it has read
    PacketType.WORK_COMPLETE: Right.WORK,
    PacketType.WORK_FAIL: Right.WORK,
    PacketType.WORK_EXCEPTION: Right.WORK,
    PacketType.GET_STATUS: _READERS,
    PacketType.GET_STATUS_UNIQUE: _READERS,
    PacketType.ECHO_REQ: _EVERYONE,
    PacketType.OPTION_REQ: _EVERYONE,
    PacketType.SET_CLIENT_ID: _EVERYONE,
}

ANSWERED: Final = frozenset(
    {
        PacketType.GRAB_JOB,
        PacketType.GRAB_JOB_UNIQ,
        PacketType.GRAB_JOB_ALL,
        PacketType.GET_STATUS,
        PacketType.GET_STATUS_UNIQUE,
    }
)
"""Packets other than submissions that have an answer, in whose place ERROR can be sent."""

FUNCTIONS: Final[Mapping[bytes, Needed]] = {
    b"gearflow:auth": _EVERYONE,
    b"gearflow:submit": Right.SUBMIT,
    b"gearflow:result": _READERS,
    b"gearflow:stream": _READERS,  # see needed_by
    b"gearflow:watch": _READERS,
    b"gearflow:info": _EVERYONE,  # see needed_by
    b"gearflow:cancel": Right.SUBMIT | Right.OPERATE,
    b"gearflow:edit": Right.SUBMIT | Right.OPERATE,
    b"gearflow:detach": _EVERYONE,  # it concerns only what the connection itself has asked for
    b"gearflow:retry": Right.WORK,
    b"gearflow:release": Right.WORK,
    b"gearflow:events": Right.WORK,
    b"gearflow:report": Right.WORK,
    b"gearflow:workers": _READERS,  # gearflow submit asks it which payloads are texts; see needed_by
    b"gearflow:group": Right.VIEW,
    b"gearflow:metrics": Right.VIEW,
    b"gearflow:jobs": Right.VIEW,
    b"gearflow:bulk": Right.VIEW,  # see needed_by
    b"gearflow:dead": Right.VIEW,  # see needed_by
    b"gearflow:schedules": Right.VIEW | Right.WORK,  # a worker compares them with what its tasks declare
    b"gearflow:schedule": Right.VIEW,  # see needed_by
    b"gearflow:limits": Right.VIEW,
    b"gearflow:limit": Right.VIEW | Right.WORK,  # see needed_by
    b"gearflow:policy": Right.VIEW,  # see needed_by
    b"gearflow:pause": Right.OPERATE,
    b"gearflow:purge": Right.OPERATE,
    b"gearflow:reopen": Right.OPERATE,
    b"gearflow:quiet": Right.OPERATE,
}

COMMANDS: Final[Mapping[type, Needed]] = {
    admin.Version: _EVERYONE,
    admin.Status: _READERS,  # gearflow submit finds functions by it
    admin.PriorityStatus: Right.VIEW,
    admin.ShowWorkers: Right.VIEW,
    admin.ShowJobs: Right.VIEW,
    admin.ShowUniqueJobs: Right.VIEW,
    admin.GetPid: Right.VIEW,
    admin.Verbose: Right.VIEW,
    admin.MaxQueue: Right.OPERATE,
    admin.CancelJob: Right.OPERATE,
    admin.CreateFunction: Right.OPERATE,
    admin.DropFunction: Right.OPERATE,
    admin.CommandRefused: _EVERYONE,  # it is no command, which the answer says
}


def needed_by(request: Message) -> Needed:
    """The rights that a request needs. That its function may be called has been checked before.

    A request is checked after it was read and validated, so that there is only one reading of it.
    """
    match request:
        case BulkRequest():
            return Right.VIEW if request.do in ("count", "errors") else Right.OPERATE
        case DeadRequest():
            return Right.VIEW if request.action in ("list", "show") else Right.OPERATE
        case InfoRequest():
            return _EVERYONE if request.job() is None else _READERS
        case LimitRequest():  # a worker compares its limits
            return Right.VIEW | Right.WORK if request.dry_run else Right.OPERATE
        case PolicyRequest():
            return Right.VIEW if request.action == "list" else Right.OPERATE
        case ScheduleRequest():
            return Right.VIEW if request.dry_run else Right.OPERATE
        case StreamRequest():
            return _READERS if request.lag == "skip" else Right.SUBMIT  # else the worker waits for the reader
        case WorkersRequest():  # the handles of jobs are for those who may see all jobs
            return Right.VIEW if request.jobs else _READERS
        case _:
            return _EVERYONE


def refusal_text(what: str, needed: Needed, rights: Right) -> str:
    """Why a request is refused, and what it needs."""
    needs = " or ".join(right_words(needed)) or "all"
    one = "the right" if needs != "all" else "a token with"
    return (
        f"{what} needs {one} {needs}, and the token of this connection has: {', '.join(right_words(rights))}"
    )
