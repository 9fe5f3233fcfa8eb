"""The loop of ``gearflow top``: a look at the servers, a frame, a key."""

import os
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final, cast

import anyio
import anyio.abc

from gearflow.client import Client
from gearflow.errors import GearflowError
from gearflow.observe import FleetView, Patience, ServerView, ServerWatch, ViewPart
from gearflow_cli.top.acts import TopActs, question
from gearflow_cli.top.columns import ListedWorker, Seen
from gearflow_cli.top.details import describe, title_of
from gearflow_cli.top.frame import frame, selected
from gearflow_cli.top.job_lists import JobList, filter_of, list_jobs
from gearflow_cli.top.model import Choices, Opened, Question, TopPage, Verb
from gearflow_cli.top.terminal import FullScreen, Pasted

_SHARE: Final = 5
"""The pause after a look is at least so many times as long as the look took. So servers with a great many
functions are asked less often."""

_SOON: Final = 1.0
"""Seconds to the second look, which brings the first rates."""

_SILENT: Final = 0.3
"""Seconds after which an act shows that it waits."""

_ENOUGH: Final = 0.9
"""The part of the time between two looks from which on they are compared."""


class TopLive:
    """One run of ``gearflow top``. Owns what is shown.

    Args:
        client: Makes all calls.
        addresses: The servers.
        screen: The terminal.
        every: Seconds between two looks.
    """

    def __init__(self, client: Client, addresses: Sequence[str], screen: FullScreen, every: float) -> None:
        self._client = client
        self._addresses = list(addresses)
        self._watch = ServerWatch(self._addresses)
        self._screen = screen
        self._every = every
        self._acts = TopActs(client, several=len(self._addresses) > 1)
        self.choices = Choices()
        self._shown: Seen | None = None
        self._looks: deque[tuple[float, FleetView]] = deque()
        self._wake = anyio.Event()
        self._asked: object = None  # what the jobs that are shown were asked by
        self._tasks: anyio.abc.TaskGroup

    async def run(self) -> None:
        """Return when the person quits, or the terminal is gone."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._watch_signals)
            self._tasks.start_soon(self._watch_servers)
            self._draw()
            await self._read_keys()
            self._tasks.cancel_scope.cancel()

    def _draw(self) -> None:
        columns, rows = self._screen.size
        self._screen.show(frame(self.choices, self._shown, columns, rows))

    async def _watch_signals(self) -> None:
        kinds = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT, signal.SIGTERM, signal.SIGHUP)
        with anyio.open_signal_receiver(*kinds) as signals:
            async for kind in signals:
                match kind:
                    case signal.SIGTERM | signal.SIGHUP:
                        self._tasks.cancel_scope.cancel()
                        return
                    case signal.SIGTSTP:
                        self._screen.leave()
                        os.kill(os.getpid(), signal.SIGSTOP)
                        self._screen.enter()
                    case signal.SIGCONT:
                        self._screen.enter()
                    case _:
                        self._screen.forget()
                self._draw()

    # ------------------------------------------------------------------------------------------ looking

    async def _watch_servers(self) -> None:
        pause = _SOON
        while True:
            self._wake = wake = anyio.Event()
            pause = max(pause, _SHARE * await self._look())
            self._draw()
            with anyio.move_on_after(pause):
                await wake.wait()
            pause = self._every

    async def _look(self) -> float:
        """Look at the servers, and at what else is shown. Returns the seconds that servers took to answer."""
        choices = self.choices
        page, function = choices.page, choices.function
        parts: set[ViewPart] = {"metrics", "limits"}
        if page is TopPage.WORKERS:
            parts.add("workers")
        fleet = FleetView(tuple(await self._watch.look(self._client, parts)))
        asked = time.monotonic()
        before = self._before(asked)
        self._looks.append((time.monotonic(), fleet))
        known = JobList([])
        if page in (TopPage.JOBS, TopPage.DEAD):
            known = await list_jobs(self._client, fleet, choices)
            if known.error:
                choices.say(known.error, is_error=True)
        if (page, function) != (choices.page, choices.function):  # the person has gone on
            known = JobList([])
            self._wake.set()
        self._shown = Seen(
            fleet,
            fleet.activity_since(before) if before is not None else None,
            time.time(),
            known.jobs,
            known.more,
            known.searched,
            several=len(self._addresses) > 1,
        )
        if choices.opened is not None:
            choices.opened.subject = _as_now(choices.opened.subject, fleet)
            await self._describe(choices.opened)
        return self._watch.cost + time.monotonic() - asked

    def _before(self, now: float) -> FleetView | None:
        """The look to which the next one is compared. A key may ask for one at once, which tells no rates."""
        while len(self._looks) > 1 and now - self._looks[1][0] >= min(_SOON, self._every) * _ENOUGH:
            self._looks.popleft()
        return self._looks[0][1] if self._looks else None

    async def _describe(self, opened: Opened) -> None:
        try:
            server: ServerView = getattr(opened.subject, "server", cast(Any, opened.subject))
            opened.lines = await Patience().ask(
                server.address, lambda: describe(self._client, opened.subject)
            )
        except (GearflowError, TimeoutError) as error:
            opened.lines = [str(error)]

    # --------------------------------------------------------------------------------------------- keys

    async def _read_keys(self) -> None:
        while keys := await self._screen.keys():
            for key in keys:
                verb = self.choices.paste(key) if isinstance(key, Pasted) else self.choices.press(key)
                if not self._take(verb):
                    return
            self._draw()

    def _take(self, verb: Verb) -> bool:
        """Do what a key asks for. False if that is the end."""
        choices = self.choices
        match verb:
            case "quit":
                return False
            case "redraw":
                self._screen.forget()
            case "look":
                self._look_elsewhere()
            case "open":
                self._open()
            case "confirmed":
                question, choices.question = choices.question, None
                if question is not None:
                    self._tasks.start_soon(self._carry_out, question.verb, question.subject)
            case "none":
                pass
            case _:
                if (subject := self._subject()) is not None:
                    self._ask_first(verb, subject)
        return True

    def _look_elsewhere(self) -> None:
        """Look now, because something else is to be shown. Jobs that do not belong to it are not."""
        choices = self.choices
        asked = choices.page, choices.function
        if choices.page in (TopPage.JOBS, TopPage.DEAD) and self._shown is not None and self._asked != asked:
            self._asked, self._shown = asked, replace(self._shown, jobs=())
        self._wake.set()

    def _subject(self) -> Any:
        """What an act is about."""
        if self.choices.opened is not None:
            return self.choices.opened.subject
        return selected(self.choices, self._shown) if self._shown is not None else None

    def _open(self) -> None:
        choices, subject = self.choices, self._subject()
        if subject is None:
            return
        if choices.page is TopPage.FUNCTIONS:
            choices.function, choices.page = subject.function, TopPage.JOBS
            self._take("look")
            return
        choices.opened = Opened(title_of(subject), subject)
        self._tasks.start_soon(self._show_opened, choices.opened)

    async def _show_opened(self, opened: Opened) -> None:
        await self._describe(opened)
        self._draw()

    # --------------------------------------------------------------------------------------------- acts

    def _ask_first(self, verb: Verb, subject: Any) -> None:
        """Carry out an act, after a question if it cannot be taken back."""
        if verb == "replay all":
            self._tasks.start_soon(self._ask_about_all)
        elif (text := question(verb, subject)) is not None:
            self.choices.question = Question(text, verb, subject)
        else:
            self._tasks.start_soon(self._carry_out, verb, subject)

    async def _ask_about_all(self) -> None:
        assert self._shown is not None  # there is a dead letter
        fleet = self._shown.fleet
        async with self._saying_that_it_waits("counting the dead letters"):
            try:
                letters = await self._acts.count_letters(filter_of(self.choices), fleet)
            except (GearflowError, TimeoutError) as error:
                self.choices.say(str(error), is_error=True)
            else:
                text = question("replay all", letters)
                self.choices.question = Question(str(text), "replay all", letters)
        self._draw()

    async def _carry_out(self, verb: Verb, subject: Any) -> None:
        views = self._shown.fleet.distinct if self._shown is not None else ()
        async with self._saying_that_it_waits(verb):
            try:
                self.choices.say(await self._acts.carry_out(verb, subject, views))
            except (GearflowError, TimeoutError) as error:
                self.choices.say(str(error), is_error=True)
        self._draw()
        self._wake.set()

    @asynccontextmanager
    async def _saying_that_it_waits(self, act: str) -> AsyncGenerator[None]:
        """Say so if an act takes long. Servers have the time of the client for it, because half of an act may
        be done."""

        async def say() -> None:
            await anyio.sleep(_SILENT)
            self.choices.say(f"{act}: waiting for the server")
            self._draw()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(say)
            yield
            tasks.cancel_scope.cancel()


def _as_now(subject: Any, fleet: FleetView) -> Any:
    """A worker or a server as it is now, if it is still there."""
    found: Iterable[Any]
    match subject:
        case ServerView(address=address):
            found = (view for view in fleet.servers if view.address == address)
        case ListedWorker(server=server, worker=worker):
            found = (
                ListedWorker(view, each)
                for view in fleet.servers
                if view.address == server.address
                for each in view.workers
                if each.id and each.id == worker.id
            )
        case _:
            return subject
    return next(iter(found), subject)
