"""The jobs of one connection that share a handle.

Several submissions of one connection may coalesce on one job. gearmand, the Perl server and gearflow's own
then send everything once for each of them; ``AttachedJobs`` passes one copy to each.
"""

from gearflow.client.job import ClientJob, JobEvent
from gearflow.protocol.codec import marked_failure
from gearflow.protocol.packets import WorkWarning


class AttachedJobs:
    """The jobs of a connection on one handle, and how often the server sends each packet for them."""

    __slots__ = ("_copies", "_seen", "_theirs", "held_back", "jobs")

    def __init__(self) -> None:
        self.jobs: list[ClientJob] = []
        self.held_back: WorkWarning | None = None  # tells how the job fails, if WORK_FAIL comes next
        self._theirs = 0  # submissions attached in the server's eyes: also those detached here
        self._copies: tuple[int, bytes] | None = None
        self._seen = 0

    @property
    def is_over(self) -> bool:
        """Whether the server sends nothing any more."""
        return not self._theirs

    def attach(self, job: ClientJob | None) -> None:
        self._theirs += 1
        self._copies = None
        if job is not None:
            self.jobs.append(job)

    def withdraw(self) -> None:
        """One submission is not attached any more, in the server's eyes either."""
        self._theirs -= 1
        self._copies = None

    def notify(self, event: JobEvent) -> None:
        """Pass an event on, after the warning that was held back before it."""
        self.notify_held_back()
        for job in self.jobs:
            job.add_event(event)

    def notify_held_back(self) -> None:
        """Pass the warning on that was held back, if there is one: it was only a warning."""
        if self.held_back is not None:
            event, self.held_back = self.held_back, None
            self.notify(event)

    def failure(self) -> bytes | None:
        """Take the failure out of the warning that was held back; ``None`` if there is none."""
        event, self.held_back = self.held_back, None
        return None if event is None else marked_failure(event.data)

    def is_copy(self, kind: int, body: bytes) -> bool:
        """Whether this packet only repeats the one before for another of our submissions.

        The copies of a packet come in a row. A server that sends a single one is understood too, except
        when it sends two equal packets in a row.
        """
        if self._theirs == 1:
            return False
        if self._seen < self._theirs and self._copies == (kind, body):
            self._seen += 1
            return True
        self._copies, self._seen = (kind, body), 1
        return False


class Withdrawal:
    """A call of ``gearflow:detach`` under way; ``set`` when the server has accepted it."""

    __slots__ = ("_attached", "_handle")

    def __init__(self, attached: dict[bytes, ClientJob | AttachedJobs], handle: bytes) -> None:
        self._attached = attached
        self._handle = handle

    def set(self) -> None:
        attached = self._attached.get(self._handle)
        if not isinstance(attached, AttachedJobs):  # the job has ended meanwhile
            return
        attached.withdraw()
        if attached.is_over:
            del self._attached[self._handle]

    async def wait(self) -> None:
        """Return at once: nobody waits for it."""


def jobs_of(attached: ClientJob | AttachedJobs) -> list[ClientJob]:
    """The jobs on a handle that is over."""
    if isinstance(attached, ClientJob):
        return [attached]
    attached.notify_held_back()
    return attached.jobs
