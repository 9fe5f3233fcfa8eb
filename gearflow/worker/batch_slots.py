"""The room of a batch, and the slot that it has. Pure: no socket, no clock, no await.

The jobs of a batch task come by connections that know only its function, so a GRAB there brings an item. A
batch takes one slot of the worker before its first GRAB is written, and keeps it until its run has ended.
With that slot it asks for as many jobs as it has room for. So a worker with one slot can fill a batch of a
hundred, and two batches of a function run at once if there are two slots.

**Invariant:** while a batch collects, its free room, the GRABs in flight and its items sum up to its size. If
all GRABs come back empty before there is an item, the slot goes back.

A run may have to begin before a server has answered. The GRABs to it are *late* then. If one brings a job
after all, and no batch has room, the job is held, as one is between two runs, and claims a slot for the next
batch.
"""

from collections.abc import Callable

from gearflow.worker.slots import Begin, Queued, SlotAllocator


class BatchSlots(SlotAllocator):
    """The room of the batch that a task collects, shared by the task's connections. Owns state.

    Args:
        size: The largest number of items of a batch.
        worker: The slots of the worker.

    Attributes:
        worker: The same.
        has_slot: Whether a batch collects, so that there is room.
        promised: GRABs in flight for it.
        late: GRABs in flight whose batch has begun to run.
        when_answered: Called when no GRAB of the batch is in flight any more.
        when_stopped: Called when nothing new is to be taken.
    """

    def __init__(self, size: int, worker: SlotAllocator) -> None:
        super().__init__(size, noop_reply=worker.noop_reply)
        self.free = 0
        self.has_slot = False
        self.promised = 0
        self.late = 0
        self.when_answered: Callable[[], object] = _nothing
        self.when_stopped: Callable[[], object] = _nothing
        self.worker = worker
        self.alone = worker.alone  # as long as a run is to be alone, nothing is asked for
        self._turn = _Turn(self)
        self._is_claiming = False
        self.when_empty = self._is_empty
        worker.parts.append(self)

    # ----------------------------------------------------------------------------- the items of a batch

    def arrived(self) -> bool:
        """A GRAB has brought an item. It is part of the batch that collects, unless this returns False."""
        if self.late:
            self.late -= 1
            if not self.free:
                return False
            self.free -= 1
            return True
        self.promised -= 1
        return True

    def dropped(self) -> None:
        """An item of the batch that collects is not to run."""
        self._make_room(1)

    def leave(self) -> None:
        """The batch runs now, and its run has the slot. The next one takes another."""
        self.late += self.promised
        self.promised = 0
        self.free = 0
        self.has_slot = False
        self.grant()

    # ------------------------------------------------------------------------- called by the connections

    def finished(self) -> None:
        """A GRAB has brought something that is no item, and is not run."""
        self.release(1)

    def release(self, slots: int) -> None:
        """So many GRABs in flight bring nothing."""
        late = min(self.late, slots)
        self.late -= late
        self.promised -= slots - late
        if slots > late:
            self._make_room(slots - late)
            if self.has_slot and not self.promised:
                self.when_answered()

    def withdraw(self, server: Queued) -> None:
        """A connection wants no more."""
        super().withdraw(server)
        self._give_back()

    def stop(self) -> None:
        """Want nothing more."""
        self.stopped = True
        self._queue.clear()
        self._give_back()
        self.when_stopped()

    def grant(self) -> None:
        """Give room to held jobs, then promise it to those who want it. Ask for a slot if there is none."""
        if not self.has_slot:
            if self._claims and not self._is_claiming:
                self._is_claiming = True
                self.worker.claim(self._claimed)
            elif self._queue and not (self._is_closed or self._turn.queued):
                self._turn.wanted = 1
                self.worker.enqueue(self._turn, first=False)
                self.worker.grant()
            return
        while self._claims and self.free:
            self.worker.held -= 1
            self._join(self._claims.popleft())
        if not self._is_closed:
            self._promise()
        self._give_back()

    # ------------------------------------------------------------------------------------ held jobs

    def hold(self) -> None:
        """An item stays here until it is part of a batch."""
        self.worker.hold()

    def drop(self, begin: Begin) -> None:
        """A held item is not to run here."""
        if begin in self._claims:
            self._claims.remove(begin)
        if self._is_claiming and not self._claims:
            self._is_claiming = False
            self.worker.drop(self._claimed)
        else:
            self.worker.drop(begin)

    def _claimed(self) -> None:
        """The worker has a slot for the batch of a held item, which it counts as held no more."""
        self._is_claiming = False
        self._open()
        self._join(self._claims.popleft())
        self.grant()

    def _join(self, begin: Begin) -> None:
        self.free -= 1
        begin()

    # ------------------------------------------------------------------------------------- the slot

    def take_slot(self) -> bool:
        """Take a slot of the worker, if one is still wanted."""
        if self.has_slot or not self._queue or self._is_closed:
            return False
        self._open()
        self._promise()
        if not self.promised:  # nobody wants it any more
            self.has_slot = False
            self.free = 0
        return self.has_slot

    def _promise(self) -> None:
        queue = self._queue
        while self.free and queue:
            server = queue.popleft()
            if server.accept():
                self.free -= 1
                self.promised += 1
            if server.wanted:
                queue.append(server)
            else:
                server.queued = False

    @property
    def _is_closed(self) -> bool:
        """Whether no GRAB may be granted now."""
        return self.is_quiet or self.stopped or bool(self.alone)

    def _open(self) -> None:
        self.has_slot = True
        self.free = self.slots

    def _make_room(self, items: int) -> None:
        if self.has_slot:
            self.free += items
            self.grant()
            self._give_back()

    def _give_back(self) -> None:
        """The slot is the worker's again if the batch has nothing, and nothing is on its way."""
        if self.has_slot and self.free == self.slots and (self._is_closed or not self._queue):
            self.has_slot = False
            self.free = 0
            self.worker.release(1)

    def _is_empty(self) -> object:
        return self.worker.when_empty()


class _Turn(Queued):
    """The place of a batch in the queue of the worker. Owns state."""

    def __init__(self, slots: BatchSlots) -> None:
        super().__init__()
        self._slots = slots

    def accept(self) -> bool:
        self.wanted = 0
        return self._slots.take_slot()


def _nothing() -> None:
    """Nobody wants to know."""
