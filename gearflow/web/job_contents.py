"""The payload, the result and the parts of one job, as a page shows them: cut, as text."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import anyio

from gearflow.client import Client, JobFailed, JobHandle
from gearflow.client.operate import dead_letter, jobs
from gearflow.client.reading import StreamReader
from gearflow.errors import GearflowError, StreamGap, StreamRestarted
from gearflow.protocol.jobs import JobFilter
from gearflow.protocol.server_calls import JobInfo
from gearflow.web.formatting import size

CUT: Final = 65_536
"""Characters of a payload or a result that are shown, and bytes that are asked for."""

PARTS: Final = 20
"""Parts of a stream that are shown: the last ones."""

_PART: Final = 2000
"""Characters of a part that are shown."""

_PARTS_TIMEOUT: Final = 0.3
"""Seconds in which the last parts have to come. They are there already."""


@dataclass(frozen=True, slots=True)
class Content:
    """Something that a client or a worker sent. A frozen value."""

    text: str
    note: str = ""
    """What is missing, or why nothing is shown."""


@dataclass(frozen=True, slots=True)
class ShownPart:
    """A part of a stream. A frozen value."""

    position: int
    text: str


async def payload_of(client: Client, job: JobInfo, server: str) -> Content | None:
    """The payload of a job. None if the server has none, because the job has ended and is no dead letter."""
    if job.ended is not None and not job.dead:
        return None
    if job.damage:
        return Content("", "The payload is damaged.")
    if job.dead:
        letter = await dead_letter(client, job.handle, server=server)
        return shown(letter.text, len(letter.payload.rstrip("=")) * 3 // 4)  # of base64
    page = await jobs(client, JobFilter(handle=job.handle), limit=1, payload=CUT, server=server)
    live = [found for found in page.jobs if found.job.handle == job.handle and found.job.ended is None]
    return shown(live[0].payload, live[0].job.size) if live else None


async def result_of(client: Client, job: JobInfo, where: JobHandle) -> Content | None:
    """The result of a job that has succeeded. None if there is none, or if it is not kept any more."""
    if job.state != "completed":
        return None
    if job.size > CUT:
        return Content("", f"{size(job.size)}. Fetch it with: gearflow result {job.handle}")
    with suppress(GearflowError, JobFailed, TimeoutError):
        data = await client.result(where, timeout=5)
        return shown(as_text(data), len(data))
    return None


async def parts_of(client: Client, job: JobInfo, where: JobHandle) -> Sequence[ShownPart]:
    """The last parts of a stream, as far as the server keeps them."""
    if not job.parts:
        return []
    reader = StreamReader(client.pool, where, after=max(job.parts - PARTS, 0), lag="skip")
    found: list[ShownPart] = []
    try:
        with anyio.move_on_after(_PARTS_TIMEOUT):
            while not found or found[-1].position < job.parts:
                try:
                    some = await reader.take()
                except (StreamGap, StreamRestarted):
                    continue
                if not some.parts:
                    break
                found += [
                    ShownPart(number, _part(part)) for number, part in enumerate(some.parts, some.start + 1)
                ]
    except (GearflowError, JobFailed):
        pass  # it keeps no parts, or has failed after the last one
    finally:
        reader.close()
    return found[-PARTS:]


def shown(text: str | None, length: int) -> Content:
    """A text as a page shows it. None stands for bytes that are none, or that were not sent."""
    if text is None:
        return Content("", f"{size(length)} that are not text, or too many to be shown.")
    if not text:
        return Content("", "It is empty.")
    cut = text[:CUT]
    if len(cut) < len(text) or length > len(cut.encode(errors="surrogatepass")):
        return Content(cut, f"Only the beginning is shown. It has {size(length)}.")
    return Content(_indented(cut))


def as_text(data: bytes) -> str | None:
    """Bytes as text. None if they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _part(data: bytes) -> str:
    text = as_text(data[: 4 * _PART])
    if text is None:
        return f"{size(len(data))} that are not text"
    return text if len(text) <= _PART else text[:_PART] + "…"


def _indented(text: str) -> str:
    """JSON with a line for each value. Any other text, or a number that would change, stays as it is."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(value, dict | list):
        return text
    for is_ascii in (False, True):
        for separators in ((",", ":"), (", ", ": ")):
            if json.dumps(value, ensure_ascii=is_ascii, separators=separators) == text.strip():
                return json.dumps(value, ensure_ascii=False, indent=2)
    return text
