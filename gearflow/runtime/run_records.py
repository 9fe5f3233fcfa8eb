"""Log records of a run carry the fields of the run, also those that users' code and libraries log.

A record is made where something is logged, so the factory of records looks at a context variable there. The
worker sets that for each run, and threads and processes of the run inherit it. The factory is set while a
worker runs, around the one that was there before. Outside of a run, records stay as they are.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol


class LoggedRun(Protocol):
    """A run, as the log has it."""

    def record_fields(self) -> Mapping[str, object]:
        """The fields of its records by ``RUN_FIELDS``. ``trace_id`` is there if there is a trace."""
        ...


RUN_FIELDS: Final = ("handle", "function", "attempt", "trace_id")

current_run: Final[ContextVar[Any]] = ContextVar("gearflow_caller", default=None)
"""The run whose task is running, as its worker's object. All that the task starts or awaits inherits it."""


def run_fields() -> dict[str, object]:
    """Return the fields of the run that calls this, for loggers that do not use the module ``logging``.

    They are ``handle``, ``function``, ``attempt``, and ``trace_id`` if there is a trace. Outside of a run
    there are none.
    """
    run: LoggedRun | None = current_run.get()
    return {} if run is None else dict(run.record_fields())


class _Attributes(dict[str, Any]):
    """The attributes of a record of a run.

    ``logging`` refuses fields of ``extra`` that a record contains already. A user's field may have the name
    of one of these, and then it takes its place.
    """

    def __contains__(self, name: object) -> bool:
        return name not in RUN_FIELDS and super().__contains__(name)

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[Iterable[tuple[str, Any]]]]:
        return dict, (list(self.items()),)  # as the receiver may not have this class


class RunRecordFactory:
    """Makes records as another factory does, and adds the fields of the current run."""

    def __init__(self, made_by: Callable[..., logging.LogRecord]) -> None:
        self.made_by = made_by

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.made_by(*args, **kwargs)
        run: LoggedRun | None = current_run.get()
        if run is not None:
            attributes = _Attributes(vars(record))
            attributes.update(run.record_fields())
            record.__dict__ = attributes
        return record


def are_records_plain() -> bool:
    """Whether records are those of Python, apart from what is added here."""
    factory = logging.getLogRecordFactory()
    return factory is logging.LogRecord or (
        isinstance(factory, RunRecordFactory) and factory.made_by is logging.LogRecord
    )


def add_run_fields() -> None:
    """Have the fields of runs added to all records from now on."""
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, RunRecordFactory):
        logging.setLogRecordFactory(RunRecordFactory(factory))


@contextmanager
def run_fields_added() -> Generator[None]:
    """Have the fields of runs added to all records in the block. Blocks may overlap."""
    global _blocks
    _blocks += 1
    add_run_fields()
    try:
        yield
    finally:
        _blocks -= 1
        factory = logging.getLogRecordFactory()
        if not _blocks and isinstance(factory, RunRecordFactory):  # else somebody has wrapped it
            logging.setLogRecordFactory(factory.made_by)


_blocks = 0
