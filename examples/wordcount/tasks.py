"""What the workers run: the words of one file, and the sum of several counts."""

import re
from collections import Counter
from pathlib import Path

from gearflow import task

_WORD = re.compile(r"[^\W\d_]+")  # letters of any alphabet; 'max_value' is two words


@task
def count(path: bytes) -> dict[str, int]:
    """How often each word occurs in a file; upper case counts as lower.

    The path comes as bytes, because file names need not be UTF-8. Neither need files: what is not, is
    read as U+FFFD, which is no letter.
    """
    text = Path(path.decode("utf-8", "surrogateescape")).read_text("utf-8", "replace")
    return Counter(_WORD.findall(text.lower()))


@task
def add_up(counts: list[dict[str, int]]) -> dict[str, int]:
    """The sum of several counts."""
    total: Counter[str] = Counter()
    for words in counts:
        total.update(words)
    return total
