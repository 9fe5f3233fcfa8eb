"""Middleware around one run: the first is the outermost, the task is inside the last."""

from collections.abc import Awaitable, Callable, Sequence

from gearflow.tasks.hooks import Middleware, Proceed, RunInfo, name_of


async def run_within(
    middleware: Sequence[Middleware], info: RunInfo, call: Callable[[], Awaitable[bytes]]
) -> bytes:
    """What the call returns, which is made inside all middleware.

    Raises:
        RuntimeError: One did not await ``proceed()``, or did it twice.
        BaseException: What the call or a middleware raised.
    """
    results: list[bytes] = []

    async def innermost() -> None:
        results.append(await call())

    proceed: Proceed = innermost
    for each in reversed(middleware):
        proceed = _Step(each, info, proceed).run
    await proceed()
    return results[0]


class _Step:
    """One middleware, and what is inside it. Owns state."""

    def __init__(self, middleware: Middleware, info: RunInfo, inside: Proceed) -> None:
        self._middleware = middleware
        self._info = info
        self._inside = inside
        self._has_begun = False
        self._has_ended = False
        self._failure: BaseException | None = None

    async def run(self) -> None:
        await self._middleware(self._info, self._proceed)
        if self._failure is not None:  # and the middleware has swallowed it, but there is no result
            raise self._failure
        if not self._has_ended:
            raise RuntimeError(
                f"middleware {name_of(self._middleware)} returned before the run had ended; "
                "it has to 'await proceed()'"
            )

    async def _proceed(self) -> None:
        if self._has_begun:
            raise RuntimeError(
                f"middleware {name_of(self._middleware)} called proceed() twice; a run happens once"
            )
        self._has_begun = True
        try:
            await self._inside()
        except BaseException as failure:
            self._failure = failure
            raise
        self._has_ended = True
