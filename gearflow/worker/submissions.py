"""What a worker submits itself on its connection, and the answers to it. Pure.

A worker is a client too: it calls gearflow's reserved functions, and submits a detached job again that is
to run again on a server which cannot keep it. JOB_CREATED and ERROR carry no hint of what they answer,
but a server answers in order, so they answer the oldest submission that has no answer yet. What follows
for an attached one carries its handle.
"""

from collections import deque
from typing import Final

from gearflow.protocol.codec import LAYOUTS, split
from gearflow.protocol.constants import PacketType

REFUSED: Final = "gearflow:refused"
"""The code of a refusal that came without one."""


class Submission:
    """One of them. Owns its answer; compared by identity."""

    __slots__ = ("handle", "is_answered", "is_attached", "refusal", "said")

    def __init__(self, *, is_attached: bool) -> None:
        self.is_attached = is_attached  # it is answered by its end, else by JOB_CREATED
        self.is_answered = False
        self.handle = b""  # the server's name for it, once it has one
        self.said = ""  # the last warning
        self.refusal: tuple[str, str] | None = None  # code and text, if it is answered so


class Submissions:
    """Those of one connection that are not answered. Owns state.

    Methods return the submission that is answered by what came, if one is.
    """

    __slots__ = ("_attached", "_sent")

    def __init__(self) -> None:
        self._sent: deque[Submission] = deque()  # without a handle
        self._attached: dict[bytes, Submission] = {}  # by their handles, until they end

    @property
    def next(self) -> Submission | None:
        """The one that the next JOB_CREATED or ERROR answers."""
        return self._sent[0] if self._sent else None

    def sent(self, submission: Submission) -> None:
        """It is written after all others."""
        self._sent.append(submission)

    def created(self, handle: bytes) -> Submission | None:
        """JOB_CREATED."""
        if not self._sent:
            return None  # its answer was taken for another's, or the server talks to itself
        submission = self._sent.popleft()
        submission.handle = handle
        if not submission.is_attached:
            submission.is_answered = True
            return submission
        self._attached[handle] = submission
        return None

    def refused(self, code: bytes, text: bytes) -> Submission | None:
        """ERROR."""
        if not self._sent:
            return None
        submission = self._sent.popleft()
        submission.refusal = (code.decode("utf-8", "replace"), text.decode("utf-8", "replace"))
        submission.is_answered = True
        return submission

    def is_about(self, body: bytes) -> Submission | None:
        """The attached submission that a WORK_* packet with this body is about."""
        return self._attached.get(body.partition(b"\0")[0])

    def heard(self, submission: Submission, kind: int, body: bytes) -> Submission | None:
        """A WORK_* packet about it."""
        handle, *rest = split(LAYOUTS[PacketType(kind)], kind, body)
        match kind:
            case PacketType.WORK_COMPLETE:
                pass
            case PacketType.WORK_FAIL:
                submission.refusal = (REFUSED, submission.said)
            case PacketType.WORK_EXCEPTION:
                submission.refusal = _refusal(rest[0])
            case PacketType.WORK_WARNING:
                submission.said = rest[0].decode("utf-8", "replace")
                return None
            case _:
                return None
        del self._attached[handle]
        submission.is_answered = True
        return submission


def _refusal(data: bytes) -> tuple[str, str]:
    from gearflow.protocol.server_calls import Fault  # now: few workers need its models

    try:
        fault = Fault.model_validate_json(data)
    except ValueError:
        return REFUSED, data.decode("utf-8", "replace")
    return fault.type, fault.message
