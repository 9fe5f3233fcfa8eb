"""What is to be kept, in order, and who is told when it is: the broker's side of the two-step door.

The broker appends entries; the shell takes what has gathered, has the store write all changes as one
group, and then calls ``done`` of each entry in order. Entries without a change only wait for those before
them: so an answer that speaks of the store is given when the store knows all that has happened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from gearflow.broker.storage import Change

Entry: TypeAlias = tuple[Change | None, Callable[[str | None], None] | None]
"""A change for the store, and what to do then: told None when the change is kept, else why it is not.

A plain tuple, as there is one for the end of each background job.
"""
