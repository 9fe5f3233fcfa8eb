"""A text generator that streams its words, with two readers: a task that yields.

    python examples/storyteller.py

The model is small: for each pair of words it knows the words that may follow. It is trained here, on the
docstrings of Python's standard library. ``tell`` yields word after word as they are chosen. One reader takes
all of them as they come. The other one joins the same job later, by its handle, and first gets the words that
it has missed. Both see the same story.
"""

import ast
import asyncio
import random
import sysconfig
from collections import defaultdict
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

from gearflow import JobServer, StreamRef, connect, task
from gearflow.worker import Worker

MODULES = (
    "argparse",
    "ast",
    "bdb",
    "calendar",
    "cmd",
    "codecs",
    "csv",
    "difflib",
    "doctest",
    "inspect",
    "pdb",
)


@cache
def model() -> dict[tuple[str, str], list[str]]:
    """The words that may follow each pair of words."""
    following: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for module in MODULES:
        tree = ast.parse(Path(sysconfig.get_path("stdlib"), f"{module}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                words = (ast.get_docstring(node) or "").split()
                for first, second, third in zip(words, words[1:], words[2:], strict=False):
                    following[first, second].append(third)
    return dict(following)


@task
async def tell(seed: int, length: int) -> AsyncIterator[str]:
    """A story of so many words, which is the same for the same seed."""
    choices = random.Random(seed)
    pairs = sorted(model())
    pair = choices.choice(pairs)
    for _ in range(length):
        yield pair[0]
        following = model().get(pair)
        pair = (pair[1], choices.choice(following)) if following else choices.choice(pairs)


async def listen(story: StreamRef[str]) -> list[str]:
    """All words of a story, also those that were told before."""
    return [word async for word in story.astream()]


async def main() -> None:
    """Tell one story to two readers."""
    async with (
        JobServer(port=0) as server,
        connect(server.address),
        Worker([tell], servers=[server.address]),
    ):
        story = await tell.abackground(seed=4, length=300)
        first: list[str] = []
        joining: asyncio.Task[list[str]] | None = None
        async for word in story.astream():
            first.append(word)
            if len(first) == 100:
                joining = asyncio.create_task(listen(story))
        assert joining is not None  # the story is longer
        second = await joining
    print(f"words: {len(first)} and {len(second)}")
    print(f"the same story: {first == second}")
    print(f"as it would be told here: {first == [word async for word in tell(seed=4, length=300)]}")
    print(f"every step is one that the model has seen: {steps_are_known(first) > 0.8}")


def steps_are_known(words: list[str]) -> float:
    """The share of triples that occur in the docstrings. Where a docstring ends, a new pair begins."""
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return sum(third in model().get((first, second), []) for first, second, third in triples) / len(triples)


if __name__ == "__main__":
    asyncio.run(main())
