"""What is to be written to one connection: collected from the loop and from threads, taken in one piece.

Progress that is newer than what the connection has taken replaces it: a task may report a million times
while the server takes ten, and nobody wants the others. It never moves past another packet of its job.
"""

import threading


class Outbox:
    """Encoded packets in order. Owns state; safe to use from several threads."""

    __slots__ = ("_lock", "_packets", "_progress")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packets: list[bytes] = []
        self._progress: dict[bytes, int] = {}  # handle -> where its last packet is, if that is progress

    def add(self, handle: bytes, packet: bytes) -> None:
        """Put a packet about a job at the end."""
        with self._lock:
            if self._progress:
                self._progress.pop(handle, None)
            self._packets.append(packet)

    def add_progress(self, handle: bytes, packet: bytes) -> None:
        """Put progress of a job at the end, or in the place of its progress that is not written yet."""
        with self._lock:
            place = self._progress.get(handle)
            if place is None:
                self._progress[handle] = len(self._packets)
                self._packets.append(packet)
            else:
                self._packets[place] = packet

    def take(self) -> list[bytes]:
        """All that is there; the outbox is empty then."""
        with self._lock:
            packets, self._packets = self._packets, []
            if self._progress:
                self._progress.clear()
        return packets
