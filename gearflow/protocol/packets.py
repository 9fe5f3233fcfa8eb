"""One frozen dataclass for each packet of the protocol, fields in wire order.

A body is the fields joined by single NULs; only the last one may contain NULs itself, and only where
it is opaque data (``workload``, ``data``, ``result``). Every field is bytes as they are on the wire;
numbers are decimal text. ``senders`` says who may send the packet: the request magic goes with clients
and workers, the response magic with servers.

A packet that adds no field to those of its base is no dataclass of its own: what it inherits does for it,
too, and each dataclass costs every program's start 0.4 ms.

Source: gearman-protocol, section 2 (packet table); PROTOCOL of gearmand 1.1.21.
"""

from dataclasses import dataclass
from enum import Flag, auto
from typing import ClassVar, TypeAlias

from gearflow.protocol.constants import PacketType


class Role(Flag):
    """Who is at one end of a connection. One connection may be client and worker at once."""

    CLIENT = auto()
    WORKER = auto()
    SERVER = auto()


@dataclass(frozen=True, slots=True)
class Packet:
    """What all packets share: a number and who may send it."""

    type: ClassVar[PacketType]
    senders: ClassVar[Role]


# ------------------------------------------------------------------------------- abilities and sleep


@dataclass(frozen=True, slots=True)
class CanDo(Packet):
    """A worker offers a function."""

    type = PacketType.CAN_DO
    senders = Role.WORKER
    function: bytes


@dataclass(frozen=True, slots=True)
class CantDo(Packet):
    """A worker withdraws a function; one it never offered is ignored."""

    type = PacketType.CANT_DO
    senders = Role.WORKER
    function: bytes


class ResetAbilities(Packet):
    """A worker withdraws all its functions."""

    __slots__ = ()
    type = PacketType.RESET_ABILITIES
    senders = Role.WORKER


@dataclass(frozen=True, slots=True)
class CanDoTimeout(Packet):
    """A worker offers a function and asks the server to take a job away after ``milliseconds``."""

    type = PacketType.CAN_DO_TIMEOUT
    senders = Role.WORKER
    function: bytes
    milliseconds: bytes


@dataclass(frozen=True, slots=True)
class SetClientId(Packet):
    """The name that the text command ``workers`` shows for this connection."""

    type = PacketType.SET_CLIENT_ID
    senders = Role.CLIENT | Role.WORKER
    client_id: bytes


class PreSleep(Packet):
    """A worker is about to sleep and wants a NOOP when there is something to grab."""

    __slots__ = ()
    type = PacketType.PRE_SLEEP
    senders = Role.WORKER


class Noop(Packet):
    """Wakes a sleeping worker."""

    __slots__ = ()
    type = PacketType.NOOP
    senders = Role.SERVER


class AllYours(Packet):
    """Never implemented by any server; answered with ERROR."""

    __slots__ = ()
    type = PacketType.ALL_YOURS
    senders = Role.WORKER


# ------------------------------------------------------------------------------------ submitting jobs


@dataclass(frozen=True, slots=True)
class _Submit(Packet):
    senders = Role.CLIENT
    function: bytes
    unique: bytes  # b"" asks for no coalescing, b"-" for coalescing by workload
    workload: bytes


class SubmitJob(_Submit):
    """Foreground, normal priority: the connection is attached and hears of progress and the end."""

    __slots__ = ()
    type = PacketType.SUBMIT_JOB


class SubmitJobHigh(_Submit):
    """Foreground, before normal and low ones."""

    __slots__ = ()
    type = PacketType.SUBMIT_JOB_HIGH


class SubmitJobLow(_Submit):
    """Foreground, after high and normal ones."""

    __slots__ = ()
    type = PacketType.SUBMIT_JOB_LOW


class SubmitJobBg(_Submit):
    """Background, normal priority: the client hears JOB_CREATED and nothing more."""

    __slots__ = ()
    type = PacketType.SUBMIT_JOB_BG


class SubmitJobHighBg(_Submit):
    """Background, before normal and low ones."""

    __slots__ = ()
    type = PacketType.SUBMIT_JOB_HIGH_BG


class SubmitJobLowBg(_Submit):
    """Background, after high and normal ones."""

    __slots__ = ()
    type = PacketType.SUBMIT_JOB_LOW_BG


@dataclass(frozen=True, slots=True)
class SubmitJobSched(Packet):
    """A cron-like submission, never implemented by any server; answered with ERROR."""

    type = PacketType.SUBMIT_JOB_SCHED
    senders = Role.CLIENT
    function: bytes
    unique: bytes
    minute: bytes
    hour: bytes
    day_of_month: bytes
    month: bytes
    day_of_week: bytes
    workload: bytes


@dataclass(frozen=True, slots=True)
class SubmitJobEpoch(Packet):
    """Background, normal priority, not before ``epoch`` (seconds of Unix time)."""

    type = PacketType.SUBMIT_JOB_EPOCH
    senders = Role.CLIENT
    function: bytes
    unique: bytes
    epoch: bytes
    workload: bytes


@dataclass(frozen=True, slots=True)
class _SubmitReduce(Packet):
    # The protocol document names three arguments before the workload; gearmand and libgearman
    # use four. The fourth is ignored.
    senders = Role.CLIENT
    function: bytes
    unique: bytes
    reducer: bytes
    ignored: bytes
    workload: bytes


class SubmitReduceJob(_SubmitReduce):
    """Foreground, normal priority, with a reducer for workers that use GRAB_JOB_ALL."""

    __slots__ = ()
    type = PacketType.SUBMIT_REDUCE_JOB


class SubmitReduceJobBackground(_SubmitReduce):
    """Background, normal priority, with a reducer for workers that use GRAB_JOB_ALL."""

    __slots__ = ()
    type = PacketType.SUBMIT_REDUCE_JOB_BACKGROUND


@dataclass(frozen=True, slots=True)
class JobCreated(Packet):
    """The answer to every accepted submission, new or joined."""

    type = PacketType.JOB_CREATED
    senders = Role.SERVER
    handle: bytes


# -------------------------------------------------------------------------------------- grabbing jobs


class GrabJob(Packet):
    """A worker asks for a job; the answer is JOB_ASSIGN or NO_JOB."""

    __slots__ = ()
    type = PacketType.GRAB_JOB
    senders = Role.WORKER


class GrabJobUniq(Packet):
    """As GRAB_JOB, answered with JOB_ASSIGN_UNIQ."""

    __slots__ = ()
    type = PacketType.GRAB_JOB_UNIQ
    senders = Role.WORKER


class GrabJobAll(Packet):
    """As GRAB_JOB, answered with JOB_ASSIGN_ALL for jobs with a reducer, else JOB_ASSIGN_UNIQ."""

    __slots__ = ()
    type = PacketType.GRAB_JOB_ALL
    senders = Role.WORKER


class NoJob(Packet):
    """There is nothing to grab."""

    __slots__ = ()
    type = PacketType.NO_JOB
    senders = Role.SERVER


@dataclass(frozen=True, slots=True)
class JobAssign(Packet):
    """Here is a job."""

    type = PacketType.JOB_ASSIGN
    senders = Role.SERVER
    handle: bytes
    function: bytes
    workload: bytes


@dataclass(frozen=True, slots=True)
class JobAssignUniq(Packet):
    """Here is a job, with its unique."""

    type = PacketType.JOB_ASSIGN_UNIQ
    senders = Role.SERVER
    handle: bytes
    function: bytes
    unique: bytes
    workload: bytes


@dataclass(frozen=True, slots=True)
class JobAssignAll(Packet):
    """Here is a job, with its unique and its reducer."""

    type = PacketType.JOB_ASSIGN_ALL
    senders = Role.SERVER
    handle: bytes
    function: bytes
    unique: bytes
    reducer: bytes
    workload: bytes


# --------------------------------------------------------------- what a worker says of a job, relayed


@dataclass(frozen=True, slots=True)
class _Work(Packet):
    senders = Role.WORKER | Role.SERVER
    handle: bytes


@dataclass(frozen=True, slots=True)
class WorkStatus(_Work):
    """Progress of a job.

    Attributes:
        handle: The server's name for the job, as bytes.
        numerator: The part that is done, as decimal text.
        denominator: The total, as decimal text.
    """

    type = PacketType.WORK_STATUS
    numerator: bytes
    denominator: bytes


@dataclass(frozen=True, slots=True)
class WorkData(_Work):
    """A part of the result.

    Attributes:
        handle: The server's name for the job, as bytes.
        data: The bytes.
    """

    type = PacketType.WORK_DATA
    data: bytes


@dataclass(frozen=True, slots=True)
class WorkWarning(_Work):
    """A warning of the worker.

    Attributes:
        handle: The server's name for the job, as bytes.
        data: The text as bytes.
    """

    type = PacketType.WORK_WARNING
    data: bytes


@dataclass(frozen=True, slots=True)
class WorkComplete(_Work):
    """The job is done."""

    type = PacketType.WORK_COMPLETE
    result: bytes


class WorkFail(_Work):
    """The job failed, without a reason."""

    __slots__ = ()
    type = PacketType.WORK_FAIL


@dataclass(frozen=True, slots=True)
class WorkException(_Work):
    """The job failed, with a reason; clients get it only if they set the option ``exceptions``."""

    type = PacketType.WORK_EXCEPTION
    data: bytes


# ---------------------------------------------------------------------------- status, options, errors


@dataclass(frozen=True, slots=True)
class GetStatus(Packet):
    """Asks for a job's status by its handle."""

    type = PacketType.GET_STATUS
    senders = Role.CLIENT
    handle: bytes


@dataclass(frozen=True, slots=True)
class StatusRes(Packet):
    """The answer to GET_STATUS; a job that is over and one that never was are both ``known`` 0."""

    type = PacketType.STATUS_RES
    senders = Role.SERVER
    handle: bytes
    known: bytes
    running: bytes
    numerator: bytes
    denominator: bytes


@dataclass(frozen=True, slots=True)
class GetStatusUnique(Packet):
    """Asks for a job's status by its unique, whatever its function."""

    type = PacketType.GET_STATUS_UNIQUE
    senders = Role.CLIENT
    unique: bytes


@dataclass(frozen=True, slots=True)
class StatusResUnique(Packet):
    """The answer to GET_STATUS_UNIQUE; ``clients`` counts the attached ones."""

    type = PacketType.STATUS_RES_UNIQUE
    senders = Role.SERVER
    unique: bytes
    known: bytes
    running: bytes
    numerator: bytes
    denominator: bytes
    clients: bytes


@dataclass(frozen=True, slots=True)
class EchoReq(Packet):
    """A ping with a body."""

    type = PacketType.ECHO_REQ
    senders = Role.CLIENT | Role.WORKER
    data: bytes


@dataclass(frozen=True, slots=True)
class EchoRes(Packet):
    """The same body back."""

    type = PacketType.ECHO_RES
    senders = Role.SERVER
    data: bytes


@dataclass(frozen=True, slots=True)
class OptionReq(Packet):
    """Asks for a connection option; there is no way to unset one."""

    type = PacketType.OPTION_REQ
    senders = Role.CLIENT | Role.WORKER
    option: bytes


@dataclass(frozen=True, slots=True)
class OptionRes(Packet):
    """The option was set."""

    type = PacketType.OPTION_RES
    senders = Role.SERVER
    option: bytes


@dataclass(frozen=True, slots=True)
class Error(Packet):
    """The server refuses a request; the connection goes on."""

    type = PacketType.ERROR
    senders = Role.SERVER
    code: bytes
    text: bytes


ServerPacket: TypeAlias = (
    Noop
    | JobCreated
    | NoJob
    | JobAssign
    | JobAssignUniq
    | JobAssignAll
    | WorkStatus
    | WorkData
    | WorkWarning
    | WorkComplete
    | WorkFail
    | WorkException
    | StatusRes
    | StatusResUnique
    | EchoRes
    | OptionRes
    | Error
)
"""What a server may send."""
