"""Magic numbers, packet types under the protocol's names, and size limits with their reasons."""

import struct
from enum import IntEnum, StrEnum
from typing import Final

REQ: Final = b"\0REQ"  # towards the server
RES: Final = b"\0RES"  # from the server

HEADER: Final = struct.Struct(">4sII")  # magic, packet type, length of the body
HEADER_SIZE: Final = HEADER.size

DEFAULT_PORT: Final = 4730  # IANA

MAX_BODY: Final = 0xFFFF_FFFF
"""Bytes in a body: the header's length field is 32 bits wide."""

MAX_ANSWER: Final = 65_536
"""Bytes in the body of an answer that brings no payload, such as JOB_CREATED or STATUS_RES: several times
what any server sends."""

MAX_PAYLOAD: Final = 1 << 30
"""Bytes in a workload or a result that a client or a worker takes by default, as a server does."""

MAX_ARGUMENT: Final = 8192
"""Bytes in an argument that is not opaque data: gearmand parses them in a receive buffer of this size."""

MAX_TEXT_LINE: Final = 8192
"""Bytes in a text command: gearmand closes the connection on a longer one."""

MAX_UNIQUE: Final = 63
"""Bytes in a unique: gearmand cuts at 63 and refuses 65, so a longer one never coalesces there."""

MAX_HANDLE: Final = 63
"""Bytes in a job handle: gearmand reserves 64, with a NUL."""

MAX_CLIENT_ID: Final = 127
"""Bytes of a client id that gearmand keeps; longer ones are cut."""

MAX_TOKEN: Final = 1024
"""Bytes in a token, the secret that gearflow's own server may require first."""

RESERVED_PREFIX: Final = b"gearflow:"
"""The names of the functions that gearflow's own server answers itself begin with it."""

GEARFLOW: Final = b"gearflow"
"""The option that gearflow's clients and workers set when they connect. Only gearflow's server knows it."""

AUTH: Final = b"gearflow:auth"
"""The reserved function that is called with the token. As the answer to OPTION_REQ ``gearflow`` it says that
the server wants it first."""

SUBMIT: Final = b"gearflow:submit"
"""The reserved function that submits a job with options."""

WINDOW_PARTS: Final = 64
"""Parts of a job that may be sent and not taken, by a worker to the server or by the server to a reader."""

WINDOW_BYTES: Final = 1 << 20
"""Bytes of these parts. A single part may be larger. It is sent when nothing else is outstanding."""

STREAM_KEEP: Final = 1 << 20
"""Bytes of the parts of a background job that the server keeps by default."""

UNAUTHORIZED: Final = b"UNAUTHORIZED"
"""The code of the ERROR for a connection that sent no token, or a wrong one."""

FORBIDDEN: Final = b"FORBIDDEN"
"""The code of the ERROR for something that the token of the connection gives no right to."""

TLS_REQUIRED: Final = b"TLS_REQUIRED"
"""The code of the ERROR for a connection without TLS on a port that requires it."""


class Priority(StrEnum):
    """The order in which the waiting jobs of a function run. Jobs of one priority run first in, first out.

    Attributes:
        HIGH: Before all others.
        NORMAL: The default.
        LOW: After all others.
    """

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class PacketType(IntEnum):
    """The protocol's packet numbers. 5 is unused; 0 and 43 upwards do not exist."""

    CAN_DO = 1
    CANT_DO = 2
    RESET_ABILITIES = 3
    PRE_SLEEP = 4
    NOOP = 6
    SUBMIT_JOB = 7
    JOB_CREATED = 8
    GRAB_JOB = 9
    NO_JOB = 10
    JOB_ASSIGN = 11
    WORK_STATUS = 12
    WORK_COMPLETE = 13
    WORK_FAIL = 14
    GET_STATUS = 15
    ECHO_REQ = 16
    ECHO_RES = 17
    SUBMIT_JOB_BG = 18
    ERROR = 19
    STATUS_RES = 20
    SUBMIT_JOB_HIGH = 21
    SET_CLIENT_ID = 22
    CAN_DO_TIMEOUT = 23
    ALL_YOURS = 24
    WORK_EXCEPTION = 25
    OPTION_REQ = 26
    OPTION_RES = 27
    WORK_DATA = 28
    WORK_WARNING = 29
    GRAB_JOB_UNIQ = 30
    JOB_ASSIGN_UNIQ = 31
    SUBMIT_JOB_HIGH_BG = 32
    SUBMIT_JOB_LOW = 33
    SUBMIT_JOB_LOW_BG = 34
    SUBMIT_JOB_SCHED = 35
    SUBMIT_JOB_EPOCH = 36
    SUBMIT_REDUCE_JOB = 37
    SUBMIT_REDUCE_JOB_BACKGROUND = 38
    GRAB_JOB_ALL = 39
    JOB_ASSIGN_ALL = 40
    GET_STATUS_UNIQUE = 41
    STATUS_RES_UNIQUE = 42


UNUSED_TYPE: Final = 5
MAX_TYPE: Final = max(PacketType)
