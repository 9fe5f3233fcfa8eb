"""The tuned sizes of the SQLite store."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Sizes in bytes, and one time in seconds. They are not settings. Tests pass smaller ones."""

    checkpoint: int = 16 << 20
    """A longer log is copied into the main file. SQLite then makes one sync on the event loop's thread."""

    blocking_checkpoint: int = 64 << 20
    """While a longer log is copied, writers may wait for the last few pages."""

    stalling_checkpoint: int = 256 << 20
    """While a longer log is copied, writers wait for all of it. The disk is slower than the writers, so
    something must hold them back."""

    log_file: int = 4 << 20
    """The log's file is cut to this size when it restarts."""

    vacuum: int = 64 << 20
    """A file with at least as many bytes of free pages, and fewer in use, is rewritten when it is opened."""

    full_check: int = 256 << 20
    """A file of up to this size is checked as a whole when it is opened: at about 1 GB/s if it is in memory,
    else as fast as the disk. A million jobs of 10 KiB would take 10 s."""

    part: int = 4 << 20
    """A longer body is divided into parts of a quarter of this size, or into 256 longer ones. The server
    writes, reads and removes one part at a time. A MiB takes some milliseconds."""

    pack: int = 16
    """So many short results that end in one group, one after the other, are written as packs."""

    loose: int = 256 << 10
    """Parts of a stream of up to this size, with a page for each row, are removed at once. More in steps."""

    expire: int = 32 << 20
    """One call of ``expire`` removes about this many bytes of bodies at most."""

    full_disk_retry: float = 0.25
    """Seconds between two attempts to make room in the log while the disk is full."""
