"""A rescue takes the place of the damaged file, and of its log: in steps, any of which may be the last.

So before the first of them a plan is put beside the file, with ``-swap`` at the end of its name. Until it is
there, all is as it was. From then on it is the rescue that counts: no server takes the file until the plan
has been carried out, which can be begun anew as often as need be.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gearflow.errors import StoreError
from gearflow.stores.faults import remedy
from gearflow.stores.names import sync_names
from gearflow.stores.owner import Owner


class Recovered(NamedTuple):
    """What was saved. What is None cannot be known."""

    kept_jobs: int  # with dead letters
    lost_jobs: int | None
    kept_records: int
    lost_records: int | None
    lost_groups: int  # of changes, at the end of a log that was cut: they are not among the lost
    same_name: bool  # handles that were given before are still good
    moved_to: Path  # where the damaged file is now
    same_paused: bool  # the functions that were paused still are


def rescue_of(path: Path) -> Path:
    """Where a rescue is until it takes the place of the file."""
    return path.with_name(f"{path.name}-recovered")


def is_planned(path: Path) -> bool:
    """Whether the rescue of the file is complete, and has yet to take its place."""
    return _plan_of(path).exists()


def check_not_planned(path: Path) -> None:
    """Raises StoreError: it is."""
    if is_planned(path):
        raise StoreError(f"{path}: its rescue was cut short before it was in its place; {remedy(path)}")


def plan(path: Path, store: bytes, recovered: Recovered) -> None:
    """Have the complete rescue take the place of the file, whatever comes between.

    Args:
        store: The name of the one that is in the rescue.
        recovered: What to tell of it then.

    Raises:
        OSError: It is not planned.
    """
    final = _plan_of(path)
    draft = final.with_name(f"{final.name}-draft")
    text = json.dumps({"store": store.decode(), **recovered._asdict(), "moved_to": recovered.moved_to.name})
    try:
        with draft.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(final)
    finally:
        draft.unlink(missing_ok=True)
    _sync_names_beside(path)


def carry_out(path: Path, owner: Owner) -> Recovered:
    """Do what is planned, as far as it has not been done.

    Raises:
        StoreError: Somebody has put another file there meanwhile, or the plan is damaged.
        OSError: It is still planned.
    """
    store, recovered = _read(path)
    if rescue_of(path).exists():
        for suffix in ("", "-wal", "-shm"):
            _move_aside(path, recovered.moved_to, suffix)
        owner.hand_over(store)
        rescue_of(path).rename(path)
        _sync_names_beside(path)
    _plan_of(path).unlink()
    return recovered


def _read(path: Path) -> tuple[bytes, Recovered]:
    """What is planned: the name of the store in the rescue, and what to tell of it."""
    try:
        planned: dict[str, Any] = json.loads(_plan_of(path).read_text(encoding="ascii"))
        store = planned.pop("store").encode()
        return store, Recovered(moved_to=path.with_name(planned.pop("moved_to")), **planned)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StoreError(
            f"{_plan_of(path)} is damaged. If {path.name} is there, remove that plan and run this again; if "
            f"not, rename {rescue_of(path).name}, which is complete, to {path.name} first"
        ) from None


def _move_aside(path: Path, moved_to: Path, suffix: str) -> None:
    old, new = path.with_name(path.name + suffix), moved_to.with_name(moved_to.name + suffix)
    if not old.exists():
        return
    if new.exists():
        raise StoreError(
            f"{old} is there again, but it was moved to {new}: move it away to have the rescue in its place, "
            f"or remove {_plan_of(path)} to go on without the rescue"
        )
    old.rename(new)


def _plan_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-swap")


def _sync_names_beside(path: Path) -> None:
    with suppress(OSError):  # not every file system can
        sync_names(path.parent)
