"""A submission as a value, and how it is put for the server that gets it.

Which server that is shows only when there is a connection, and may change when it fails. What the
protocol has a packet for goes as that packet. For everything else gearflow's own server has
``gearflow:submit``; other servers cannot keep options, so what workers are to know travels in the workload,
in an envelope, and what the server would have to do is refused.
"""

import math
import time
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from gearflow.client.config import ServerAddress
from gearflow.client.names import function_to_wire, unique_to_wire
from gearflow.client.requests import BackgroundSubmission, ReservedSubmission, Submission
from gearflow.errors import LocalProtocolError, UnsupportedByServer
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import HEADER, MAX_BODY, REQ, SUBMIT, PacketType, Priority
from gearflow.protocol.envelope import with_trace
from gearflow.protocol.packets import SubmitJobEpoch
from gearflow.protocol.request_queue import Signal
from gearflow.protocol.trace import TRACE_KEY

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import RetryPlan  # it imports pydantic


FOREGROUND: Final = {
    Priority.HIGH: PacketType.SUBMIT_JOB_HIGH,
    Priority.NORMAL: PacketType.SUBMIT_JOB,
    Priority.LOW: PacketType.SUBMIT_JOB_LOW,
}
BACKGROUND: Final = {
    Priority.HIGH: PacketType.SUBMIT_JOB_HIGH_BG,
    Priority.NORMAL: PacketType.SUBMIT_JOB_BG,
    Priority.LOW: PacketType.SUBMIT_JOB_LOW_BG,
}


Lag: TypeAlias = Literal["wait", "skip"]
"""Whether a stream waits for a slow reader, or the reader skips parts."""

_FOR_CLIENT: Final = {"resubmit", "envelope", "lag", "unread", "limited"}
"""Options that the client applies itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """The options of a submission beyond a unique and a priority. Durations are seconds.

    Attributes:
        delay: Time from now before which the job does not run, for background jobs. Servers that are not
            gearflow's support it for normal priority only, in whole seconds, rounded up.
        at: The same as Unix time.
        expires: Time from now after which the job does not start, and ends as expired. gearflow's server
            only.
        debounce: Replaces the job of the same unique that has not started, and starts it this time from now.
            For background jobs. gearflow's server only.
        max_wait: The longest time from the first of these submissions to the start of the job.
        keep: How long the outcome is kept. 0 means not at all. gearflow's server only.
        reuse: Answers with a kept success of the same function and unique. gearflow's server only.
        resubmit: Submits the job again, perhaps to another server, if the connection is lost before the job
            is known to be there. For an attached job, also if it is lost before the job's end. The job may
            run more than once.
        retries: When a worker runs the job again after a failure.
        timeout: How long a run may take on the worker.
        envelope: Bytes before the workload on servers that are not gearflow's. There they carry ``retries``
            and ``timeout`` to the worker.
        parts: ``keep`` means that the parts of the job are read as a stream, and ``wait`` that the job also
            waits for this reader. None means that they come as events of the job.
        unread: Whether the reading begins later, if at all. On servers that are not gearflow's only the last
            parts are kept until then.
        stream_keep: Bytes of parts that the server keeps of a background job. gearflow's server only.
        lag: Whether the stream waits when its reader is slow, or the reader skips parts.
        limited: Whether the function has limits, which only gearflow's server applies.
        keys: The keys of the job for limits by their names, where the caller says them. gearflow's server
            only.
        group: The group in whose turn the job runs, where the caller says it. gearflow's server only.
    """

    delay: float | None = None
    at: float | None = None
    expires: float | None = None
    debounce: float | None = None
    max_wait: float | None = None
    keep: float | None = None
    reuse: bool = False
    resubmit: bool = False
    retries: "RetryPlan | None" = None
    timeout: float | None = None
    envelope: bytes = b""
    parts: Literal["keep", "wait"] | None = None
    unread: bool = False
    stream_keep: int | None = None
    lag: Lag = "wait"
    limited: bool = False
    keys: tuple[tuple[str, str], ...] = ()
    group: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether gearflow's server needs no more than the protocol's own packets."""
        return _is_plain(self)

    def for_server(self) -> dict[str, Any]:
        """The options that gearflow's server takes beside a job, by name, without those that are not set."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        values["keys"] = dict(self.keys) or None
        return {
            name: value
            for name, value in values.items()
            if name not in _FOR_CLIENT and value is not None and value is not False
        }

    def start(self) -> float | None:
        """Return when the job may start, in Unix time, as of now."""
        return self.at if self.delay is None else time.time() + self.delay


class JobRequest(NamedTuple):  # a frozen dataclass takes five times as long to make
    """A submission, independent of the server that gets it.

    Attributes:
        function, workload, unique, priority, options: As for ``Client.submit``.
        detached: Whether it is a background job.
        takes_envelope: Whether the workers of the function know envelopes, on servers that are not
            gearflow's.
        trace: The trace context of the call, as a JSON object. Empty if there is none, and None if its span
            has not begun.
    """

    function: str
    workload: bytes
    unique: str = ""
    priority: Priority = Priority.NORMAL
    options: SubmitOptions | None = None
    detached: bool = True
    takes_envelope: bool = False
    trace: bytes | None = None

    def traced(self, trace: bytes) -> "JobRequest":
        """Return the same submission with a trace context."""
        return self._replace(trace=trace)

    @property
    def is_plain(self) -> bool:
        """Whether gearflow's server needs no more than the protocol's own packets."""
        return not self.trace and (self.options is None or self.options.is_plain)

    @property
    def resubmits(self) -> bool:
        """Whether it may be submitted again to any server."""
        return self.options is not None and self.options.resubmit

    @property
    def reuses(self) -> bool:
        """Whether a server that keeps results would answer it twice and run it once."""
        return self.options is not None and self.options.reuse

    @property
    def debounces(self) -> bool:
        """Whether it replaces the job of its unique. All of these have to meet on one server."""
        return self.options is not None and self.options.debounce is not None

    def streamed(self, *, unread: bool = False) -> "JobRequest":
        """Return the same submission with its parts read as a stream. See ``SubmitOptions``."""
        options = self.options or SubmitOptions()
        return self._replace(options=replace(options, parts="wait", unread=unread))

    def aged(self, seconds: float) -> "JobRequest":
        """Return the same submission this many seconds later, with the rest of its durations."""
        options = self.options
        if options is None or (options.delay is None and options.expires is None):
            return self
        delay, expires = (
            None if time is None else max(0.0, time - seconds) for time in (options.delay, options.expires)
        )
        return self._replace(options=replace(options, delay=delay, expires=expires))

    @property
    def key(self) -> bytes | None:
        """The key that selects one of several servers that share the load. None means any server."""
        if not self.unique:
            return None
        unique = self.workload if self.unique == "-" else unique_to_wire(self.unique)
        return function_to_wire(self.function) + b"\0" + unique

    def check(self) -> None:
        """Check what can be checked without a server.

        Raises:
            LocalProtocolError: The function or the unique cannot be sent.
            ValueError: It has a start time, but is not a background job.
        """
        function_to_wire(self.function)
        unique_to_wire(self.unique)
        if not self.detached and self.options is not None and self.options.start() is not None:
            raise ValueError(
                "a start time is for background jobs: nobody waits for a job that has not started"
            )

    def encode(self) -> tuple[bytes, bytes]:
        """The unique on the wire and the packet of a request without options, for any server.

        Raises:
            LocalProtocolError: The function or the unique cannot be sent, or the workload is too large.
        """
        unique = unique_to_wire(self.unique) if self.unique else b""
        kind = (BACKGROUND if self.detached else FOREGROUND)[self.priority]
        return unique, encode_submission(kind, function_to_wire(self.function), unique, self.workload)

    def encode_for_gearflow(self) -> tuple[bytes, bytes]:
        """As ``encode``, for a background job with options other than ``reuse``, and gearflow's server.

        Raises:
            ValueError: The options make no sense together.
        """
        if self.is_plain:
            return self.encode()
        unique = unique_to_wire(self.unique)
        workload = self._traced(_line(self.options or _NOTHING, self.function)) + self.workload
        return unique, encode_submission(BACKGROUND[self.priority], SUBMIT, unique, workload)

    def put(
        self, server: ServerAddress, answered: Signal, *, gearflow: bool, in_background: bool = False
    ) -> tuple[Submission, bytes]:
        """The request for a server, and its packet.

        Args:
            server: The server.
            answered: Set when it is answered.
            gearflow: Whether the server is gearflow's own.
            in_background: Whether it may be one that takes options in a background submission, which costs
                half.

        Raises:
            UnsupportedByServer: It cannot honour an option.
            LocalProtocolError: The workload is too large.
            ValueError: The options make no sense together.
        """
        key = unique_to_wire(self.unique)
        options = self.options
        if gearflow and (self.trace or (options is not None and not options.is_plain)):
            if in_background and self.detached and not (self.reuses or self.debounces):
                return BackgroundSubmission(self.function, key, answered), self.encode_for_gearflow()[1]
            line = _line if not self.unique else _line.__wrapped__  # what is sent once need not be kept
            head = line(options or _NOTHING, self.function, self.unique, self.priority, self.detached)
            workload = self._traced(head) + self.workload
            submission = ReservedSubmission(self.function, key, answered)
            return submission, encode_submission(PacketType.SUBMIT_JOB, SUBMIT, b"", workload)
        request = Submission(self.function, key, answered, attached=not self.detached)
        workload, at = self.workload, None
        if options is not None and not gearflow:
            self._require_no_server(options, server)
            at = options.start()
        if not gearflow:
            workload = self._envelope() + workload
        return request, packet(
            function_to_wire(self.function), key, workload, self.priority, at, detached=self.detached
        )

    def _traced(self, line: bytes) -> bytes:
        """A request, with the trace context of this call at its end."""
        return line[:-2] + TRACE_KEY + self.trace + b"}\n" if self.trace else line

    def _envelope(self) -> bytes:
        """The bytes before the workload on servers that are not gearflow's."""
        head = b"" if self.options is None else self.options.envelope
        return with_trace(head, self.trace) if self.trace and self.takes_envelope else head

    def _require_no_server(self, options: SubmitOptions, server: ServerAddress) -> None:
        """Refuse what only a server could do."""
        wanted = {
            "keep=": bool(options.keep),  # to keep nothing is what they all do
            "reuse=": options.reuse,
            "expires=": options.expires is not None,
            "debounce=": options.debounce is not None,
            "stream_keep=": bool(options.stream_keep),
            "limits= and fair=": options.limited or bool(options.keys) or options.group is not None,
        }
        if names := [name for name, is_wanted in wanted.items() if is_wanted]:
            raise UnsupportedByServer(
                f"function {self.function!r}: {server} cannot honour {', '.join(names)}, as only gearflow's "
                "own server can: leave it out, or run 'gearflow server' there"
            )
        if options.start() is not None and self.priority is not Priority.NORMAL:
            raise UnsupportedByServer(
                f"function {self.function!r}: on {server} a job with a start time has normal priority, not "
                f"{self.priority}; leave out one of them, or run 'gearflow server' there"
            )
        if (options.retries is not None or options.timeout is not None) and not options.envelope:
            raise UnsupportedByServer(
                f"function {self.function!r}: {server} keeps no retries and no timeout for a worker; "
                "put them into an envelope, as tasks do: in the shell name the task's module with -m"
            )


_NOTHING: Final = SubmitOptions()


@lru_cache  # the same for each call of a task
def _is_plain(options: SubmitOptions) -> bool:
    return not options.for_server()


@lru_cache
def _line(
    options: SubmitOptions,
    function: str,
    unique: str = "",
    priority: Priority = Priority.NORMAL,
    detached: bool = True,
) -> bytes:
    """The request of a submission to gearflow's own server, which begins the workload.

    Raises:
        ValueError: The options make no sense together.
    """
    from gearflow.protocol.server_calls import SubmitRequest

    request = SubmitRequest(
        function=function, unique=unique, priority=priority, detached=detached, **options.for_server()
    )
    return request.to_wire() + b"\n"


def packet(
    function: bytes, unique: bytes, workload: bytes, priority: Priority, at: float | None, *, detached: bool
) -> bytes:
    """The protocol's own packet for a submission; ``at`` is rounded up to whole seconds."""
    if at is not None:
        return encode(SubmitJobEpoch(function, unique, b"%d" % max(math.ceil(at), 0), workload))
    return encode_submission((BACKGROUND if detached else FOREGROUND)[priority], function, unique, workload)


def encode_submission(kind: PacketType, function: bytes, unique: bytes, workload: bytes) -> bytes:
    """As ``encode(SubmitJob(...))``, without the packet object in between: this is done for every job."""
    body = b"\0".join((function, unique, workload))
    if len(body) > MAX_BODY:
        raise LocalProtocolError(f"a workload of {len(workload)} bytes is over the wire's limit of 4 GiB")
    return HEADER.pack(REQ, kind, len(body)) + body
