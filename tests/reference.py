"""Write ``docs/reference/python.md`` from the docstrings: ``python -m tests.reference``.

The page has an entry for each public name, with the first paragraph of its docstring, a table of its
arguments, and a table of its fields, properties and methods. ``tests/test_docs.py`` compares the page with
the output of this module. Run the command again after you change a public docstring or signature.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias, get_origin

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "reference" / "python.md"

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Section:
    """A heading of the page, with names that are imported from one package."""

    title: str
    package: str
    text: str
    names: tuple[str, ...]


INTRODUCTION: Final = """# Python

This page lists everything that you can import from gearflow. It is made from the docstrings, which also
describe the errors that each function raises. `await` before a method means that you await it."""

SECTIONS: Final = (
    Section(
        "Tasks",
        "gearflow",
        "See [tasks and their options](tasks.md) for how these work together.",
        (
            *("task", "Task", "AsyncTask", "Batch", "BatchTask", "AsyncBatchTask", "CallOptions", "Retry"),
            *("Concurrency", "Rate"),
        ),
    ),
    Section(
        "Jobs and results",
        "gearflow",
        "The calls of a task return these.",
        ("Job", "AsyncJob", "Ref", "Results", "AsyncResults", "FailedItem", "map_reduce", "amap_reduce"),
    ),
    Section(
        "Streams",
        "gearflow",
        "`@task` makes a `StreamTask` of a function that yields, and its calls return the others.",
        (
            *("StreamTask", "AsyncStreamTask", "StreamOptions"),
            *("Stream", "AsyncStream", "StreamJob", "AsyncStreamJob", "StreamRef"),
        ),
    ),
    Section(
        "Answer about a group",
        "gearflow.protocol.group_info",
        "`group_info` returns this.",
        ("GroupInfo", "GroupServer", "Standby"),
    ),
    Section(
        "Events of a job",
        "gearflow",
        "The events of a job or a reference are these.",
        ("Event", "Started", "Progress", "Part", "Warned", "Retrying", "Ended"),
    ),
    Section(
        "Inside a task",
        "gearflow",
        "A task takes a `Context` as its first parameter, and raises the others.",
        ("Context", "TryAgain", "Snooze", "Discard", "Fail"),
    ),
    Section(
        "Schedules",
        "gearflow",
        "See [run tasks by the clock](../how-to/schedules.md).",
        ("Cron", "Every"),
    ),
    Section(
        "Schedules of a server",
        "gearflow.client.schedules",
        "`Client.schedules` and `SyncClient.schedules` are these.",
        ("ClientSchedules", "SyncSchedules"),
    ),
    Section(
        "Hooks",
        "gearflow",
        "See [lifespan and middleware](../how-to/lifespan-and-middleware.md).",
        ("lifespan", "middleware", "RunInfo", "Proceed"),
    ),
    Section(
        "Connections",
        "gearflow",
        "These say which servers calls go to, and how.",
        ("connect", "configure", "TLS", "Priority"),
    ),
    Section("Server", "gearflow", "See [job server](server.md).", ("JobServer", "ServerSettings")),
    Section(
        "Errors",
        "gearflow.errors",
        "See [errors](errors.md) for what happened and whether to try again.",
        (
            "GearflowError",
            "NoServer",
            "ServerError",
            "QueueFull",
            "ConnectionLost",
            "SubmitUnknown",
            "PartlySubmitted",
            "UnknownJob",
            "StreamGap",
            "StreamRestarted",
            "UnsupportedByServer",
            "StartupFailed",
            "StoreError",
            "PayloadInvalid",
            "TaskFailed",
            "TaskTimeout",
            "TaskCrashed",
            "TaskDefinitionError",
            "UnknownTask",
            "UnknownSchedule",
            "ProtocolError",
            "LocalProtocolError",
            "RemoteProtocolError",
        ),
    ),
    Section(
        "Clients",
        "gearflow.client",
        "A client submits jobs by the name of a function, with bytes as the workload. Tasks are built on it.",
        (
            "Client",
            "SyncClient",
            "ClientJob",
            "SyncJob",
            "JobEvent",
            "JobFailed",
            "JobHandle",
            "JobKey",
            "JobName",
            "JobStatus",
            "JobRequest",
            "SubmitOptions",
            "Backoff",
            "ResubmitPolicy",
            "Timeouts",
            "Security",
            "ServerAddress",
            "ServerFeatures",
            "default_servers",
            "parse_servers",
        ),
    ),
    Section(
        "The dashboard",
        "gearflow.web",
        "It needs the extra `web`. See [how to use it](../how-to/dashboard.md).",
        ("app", "Dashboard", "AccessTokens", "TrustedHeader"),
    ),
    Section(
        "Administration",
        "gearflow.client",
        "These send the [text commands](server.md#text-commands), which every Gearman server answers.",
        ("Admin", "SyncAdmin"),
    ),
    Section(
        "Rows of text commands",
        "gearflow.protocol.admin",
        "The methods of `Admin` return these.",
        ("FunctionStatus", "FunctionPriorities", "WorkerRow", "JobRow"),
    ),
    Section(
        "Operations",
        "gearflow.client.operate",
        "They need gearflow's own server. Without an event loop, call them through `SyncClient.run`.",
        (
            *("server_info", "group_info", "workers", "quiet", "pause", "purge", "reopen"),
            *("jobs", "bulk", "dead_letters", "dead_letter", "replay", "purge_dead"),
        ),
    ),
    Section(
        "Answers of gearflow's server",
        "gearflow.protocol.server_calls",
        "`Ref.info()`, `Client.info()` and the operations return these. Times are Unix time.",
        ("JobInfo", "Failure", "ServerInfo", "Closed", "Letter", "Done"),
    ),
    Section(
        "Lists of jobs",
        "gearflow.protocol.jobs",
        "`jobs` and `bulk` take a filter and return these. Times are Unix time.",
        ("JobFilter", "JobPage", "ListedJob", "BulkDone", "ErrorGroup"),
    ),
    Section(
        "Views of servers",
        "gearflow.observe",
        "`gearflow top`, `gearflow web` and `gearflow doctor` use these. They show C gearmand, too.",
        (
            *("look", "look_all", "ServerView", "FleetView", "Activity", "activity", "percentile"),
            *("pause_function", "purge_function", "quiet_worker", "cancel_job"),
        ),
    ),
    Section(
        "Workers of gearflow's server",
        "gearflow.protocol.workers",
        "`workers` and `quiet` return these. Times are Unix time.",
        ("WorkerInfo", "WorkerJob", "QuietDone"),
    ),
    Section(
        "Events of a job",
        "gearflow.protocol.packets",
        "`ClientJob.events()` yields these.",
        ("WorkStatus", "WorkWarning", "WorkData"),
    ),
    Section(
        "Worker",
        "gearflow.worker",
        "See [worker](worker.md).",
        ("Worker", "WorkerSettings", "WorkerOptions"),
    ),
    Section(
        "More of the server",
        "gearflow.server",
        "You need these only to run a server in a process of your own.",
        ("server_version", "tune_garbage_collection"),
    ),
    Section(
        "More of tasks",
        "gearflow.tasks",
        "You rarely name these.",
        ("Outcome", "AsyncOutcome", "Registry", "TaskDecorator", "BatchDecorator", "run_fields"),
    ),
    Section(
        "Tracing",
        "gearflow.tracing",
        "See [traces](../how-to/traces.md).",
        ("use_provider",),
    ),
)

ELSEWHERE: Final = {
    "CallOptions": "tasks.md#options",
    "StreamOptions": "tasks.md#options",
    "ServerSettings": "server.md#settings",
    "WorkerSettings": "worker.md#settings",
    "WorkerOptions": "worker.md#settings",
}
"""Where the fields of a class are listed, if not here."""

GIVEN: Final = {
    *("ClientSchedules", "SyncSchedules"),
    *("StreamTask", "AsyncStreamTask"),
    *("Task", "AsyncTask", "Job", "AsyncJob", "Ref", "Results", "AsyncResults", "Outcome", "AsyncOutcome"),
    *("Stream", "AsyncStream", "StreamJob", "AsyncStreamJob", "StreamRef", "Context", "ClientJob", "SyncJob"),
}
"""gearflow makes their instances, so their arguments are not public."""

UNNAMED: Final = ("Any", "Connect", "M", "None")
"""Types of results that the text of a function describes better."""

ALIASES: Final = {
    "Event": "Any event of a job. `T` is the type of the values of a stream.",
    "JobEvent": "An event that a worker sends before the end of a job.",
    "JobName": "How you name a job. A bare str is a handle that names no server.",
    "Proceed": "The rest of a run. It raises what the task raises.",
}

INTERNAL: Final = {
    *("Cron.plan", "Every.plan", "Cron.to_json", "Every.to_json"),
    *("TaskDefinition.prepare", "TaskDefinition.prepare_background", "Context.flush"),
    *("Client.advise", "Client.post", "Client.start_soon", "SyncClient.advise", "SyncClient.post"),
    *("Client.attach", "Client.enqueue", "SyncClient.attach", "SyncClient.enqueue", "JobRequest.encode"),
    *(
        "JobRequest.streamed",
        "JobRequest.traced",
        "Client.pool",
        "SyncJob.attached",
        "ClientJob.owner",
        "ClientJob.is_cancelled",
    ),
    *("ClientJob.wait_for_news", "ClientJob.take_events", "ClientJob.wake"),
    "SubmitOptions.for_server",
    *("ClientJob.add_event", "ClientJob.complete", "ClientJob.fail", "ClientJob.fail_remotely"),
    *("ClientJob.lose", "ClientJob.move", "Message.to_wire", "JobRequest.put"),
    *("Worker.abandon", "Worker.assigned", "Worker.cancelled", "Worker.lost", "Worker.post"),
    *("Worker.recognized", "Worker.registered"),
}
"""Methods that only other modules of gearflow call, by the class that defines them."""


def python_page() -> str:
    """The whole page."""
    return "\n\n".join([INTRODUCTION, *(text for section in SECTIONS for text in _section(section))]) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    yield textwrap.fill(f"Import these from `{section.package}`. {section.text}", 120)
    for name in section.names:
        yield f"### {name}"
        yield from _entry(name, getattr(import_module(section.package), name))


def _entry(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield _prose(_docstring(value))
        yield from _class(name, value)
    elif inspect.isfunction(inspect.unwrap(value)):
        function = inspect.unwrap(value)
        node = _parsed(function)
        assert isinstance(node, Function)
        yield _prose(_docstring(function))
        yield from _arguments(node, _docstring(function), vars(inspect.getmodule(function)))
        returns = _type(node.returns, function.__globals__)
        if isinstance(node, ast.AsyncFunctionDef):
            yield f"It is a coroutine function and returns {_code(returns)}."
        elif returns not in UNNAMED:
            yield f"It returns {_code(returns)}."
    else:
        yield f"{ALIASES[name]} An alias of {_code(_cleaned(inspect.formatannotation(value)))}."


def _class(name: str, cls: type) -> Iterator[str]:
    if name in ELSEWHERE:
        yield f"Its fields are in [this table]({ELSEWHERE[name]})."
        return
    bases = [base for base in cls.__mro__[1:] if base in _public()]
    if bases:
        inherited = any(True for base in bases for _ in _members(base))
        yield f"It is a `{bases[0].__name__}`" + (", and has the same members." if inherited else ".")
    methods = [node for node in _body(cls) if isinstance(node, Function)]
    start = next((node for node in methods if node.name == "__init__"), None)
    if start is not None and name not in GIVEN and "Args:" in _docstring(cls):
        yield from _arguments(start, _docstring(cls), _globals(cls))
    rows = [(text, kind, meaning) for _, text, kind, meaning in _members(cls)]
    if rows:
        yield _table("member", rows)


def _arguments(function: Function, docstring: str, names: dict[str, Any]) -> Iterator[str]:
    meanings = _listed(docstring, "Args")
    rows = [
        (text, kind, meanings.get(name, ""))
        for name, text, kind in _parameters(function, names)
        if name != "self" and not text.startswith("**")
    ]
    if function.args.kwarg is not None and function.args.kwarg.annotation is not None:
        rows += _unpacked(function.args.kwarg.annotation, meanings, names)
    if rows:
        yield _table("argument", rows)


def _unpacked(
    annotation: ast.expr, meanings: dict[str, str], names: dict[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """The keywords of ``Unpack[...]`` that the docstring explains, in its order."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Unpack"), slice=ast.Name(id=name)):
            fields = dict(_fields(names[name]))
            for name, meaning in meanings.items():
                if name in fields:
                    yield name, fields[name], meaning
        case _:
            pass


def _fields(kind: Any) -> Iterator[tuple[str, str]]:
    """Name and type of each field of a TypedDict, also those of its bases; ``None`` for what may be unset."""
    for base in getattr(kind, "__orig_bases__", ()):
        origin = get_origin(base) or base
        if hasattr(origin, "__total__"):
            yield from _fields(origin)
    for node in _body(kind):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                yield name, _type(annotation, _globals(kind)).replace("Unset", "None")
            case _:
                pass


def _members(cls: type) -> Iterator[tuple[str, str, str, str]]:
    """Name, text, type and meaning of all fields, properties and methods, also those of bases in gearflow."""
    seen = set[str]()
    meanings = _listed(_docstring(cls), "Attributes")
    listed = {base for public in cls.__mro__[1:] if public in _public() for base in public.__mro__}
    for base in cls.__mro__:
        if base.__module__.startswith("gearflow") and base not in listed:
            for name, text, kind, meaning in _own_members(base):
                hidden = name.startswith("_") or f"{base.__name__}.{name}" in INTERNAL
                if name not in seen and not hidden and not kind.startswith("ClassVar"):
                    seen.add(name)
                    yield name, text, kind, meaning or meanings.get(name, "")


def _own_members(cls: type) -> Iterator[tuple[str, str, str, str]]:
    names = _globals(cls)
    meanings = _listed(_docstring(cls), "Attributes")
    overloads = dict[str, str]()
    body = _body(cls)
    for node, following in zip(body, [*body[1:], None], strict=True):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                yield name, name, _type(annotation, names), meanings.get(name) or _string(following)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant()) if name.isupper():
                yield name, name, cls.__name__, meanings.get(name) or _string(following)
            case ast.FunctionDef(name="__init__"):
                yield from _set_attributes(node, names, meanings)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
                kind = _type(node.returns, names)
                if "overload" in decorators:
                    overloads.setdefault(name, kind)
                elif "property" in decorators:
                    yield name, name, kind, _summary(ast.get_docstring(node))
                elif not any(decorator.endswith(".setter") for decorator in decorators):
                    text = _called(node, names)
                    yield name, text, overloads.get(name, kind), _summary(ast.get_docstring(node))
            case _:
                pass


def _set_attributes(
    function: ast.FunctionDef, names: dict[str, Any], meanings: dict[str, str]
) -> Iterator[tuple[str, str, str, str]]:
    """The public attributes that a constructor sets."""
    types = {name: kind for name, _, kind in _parameters(function, names)}
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=value):
                yield name, name, types.get(ast.unparse(value)) or _inferred(value), meanings.get(name, "")
            case ast.AnnAssign(
                target=ast.Attribute(value=ast.Name(id="self"), attr=name), annotation=annotation
            ):
                yield name, name, _type(annotation, names), meanings.get(name, "")
            case _:
                pass


def _inferred(value: ast.expr) -> str:
    """The type of a constant, or the class that is called."""
    match value:
        case ast.Constant(value=constant):
            return type(constant).__name__
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name[:1].isupper():
            return name
        case ast.Call(func=ast.Name(id=("dict" | "list") as name)):
            return name
        case ast.ListComp():
            return "list"
        case _:
            return ""


def _called(function: Function, names: dict[str, Any]) -> str:
    parameters = [text for name, text, _ in _parameters(function, names) if name not in ("self", "cls")]
    if function.args.kwonlyargs and function.args.vararg is None:
        parameters.insert(-len(function.args.kwonlyargs) - (function.args.kwarg is not None), "*")
    text = f"{function.name}({', '.join(parameters)})"
    yields = any(isinstance(node, ast.Yield) for node in ast.walk(function))
    return f"await {text}" if isinstance(function, ast.AsyncFunctionDef) and not yields else text


def _parameters(function: Function, names: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, name with its default, and type."""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(positional) - len(given.defaults)), *given.defaults]
    pairs = [*zip(positional, defaults, strict=True)]
    if given.vararg is not None:
        yield given.vararg.arg, f"*{given.vararg.arg}", _type(given.vararg.annotation, names)
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    for parameter, default in pairs:
        text = parameter.arg if default is None else f"{parameter.arg}={_default(default, names)}"
        yield parameter.arg, text, _type(parameter.annotation, names)
    if given.kwarg is not None:
        yield given.kwarg.arg, f"**{given.kwarg.arg}", _type(given.kwarg.annotation, names)


def _default(node: ast.expr, names: dict[str, Any]) -> str:
    """A default as it stands in the code; a constant by its value."""
    text = ast.unparse(node)
    value = names.get(text)
    return repr(value) if isinstance(value, int | float | str) else text


def _type(annotation: ast.expr | None, names: dict[str, Any]) -> str:
    """An annotation as it stands in the code, without quotes, modules and ``Annotated``."""
    if annotation is None:
        return ""
    text = ast.unparse(annotation).strip("'").replace("_co", "")
    return re.sub(r"\w+", lambda word: _plain(word[0], names), text)


def _plain(name: str, names: dict[str, Any]) -> str:
    """A name in an annotation, or the type that it stands for if the name is not public."""
    value: Any = names.get(name)
    if hasattr(value, "__metadata__"):
        return str(value.__origin__.__name__)
    if name in ALIASES or get_origin(value) is None:
        return name
    return _cleaned(inspect.formatannotation(value))


def _cleaned(text: str) -> str:
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", text)


def _docstring(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "")


def _summary(docstring: str | None) -> str:
    """The first paragraph."""
    return " ".join((docstring or "").partition("\n\n")[0].split())


def _listed(docstring: str, heading: str) -> dict[str, str]:
    """What a section of a docstring says of each name."""
    _, _, text = docstring.partition(f"{heading}:\n")
    text = textwrap.dedent(re.split(r"^\S", text, maxsplit=1, flags=re.MULTILINE)[0])
    found = re.findall(r"^(\w+(?:, \w+)*): (.*(?:\n +.*)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for names, meaning in found for name in names.split(", ")}


def _string(node: ast.stmt | None) -> str:
    match node:
        case ast.Expr(value=ast.Constant(value=str() as text)):
            return _summary(text)
        case _:
            return ""


def _prose(docstring: str) -> str:
    return _markdown(_summary(docstring))


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(first: str, rows: list[tuple[str, str, str]]) -> str:
    cells = [(_code(text), _code(kind), _markdown(meaning)) for text, kind, meaning in rows]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells]
    return "\n".join([f"| {first} | type | meaning |", "|---|---|---|", *lines])


@cache
def _public() -> frozenset[Any]:
    """All classes that have an entry."""
    return frozenset(
        value
        for section in SECTIONS
        for name in section.names
        if inspect.isclass(value := getattr(import_module(section.package), name))
    )


@cache
def _parsed(value: Any) -> ast.stmt:
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def _body(cls: type) -> list[ast.stmt]:
    node = _parsed(cls)
    assert isinstance(node, ast.ClassDef)
    return node.body


def _globals(cls: type) -> dict[str, Any]:
    module = inspect.getmodule(cls)
    assert isinstance(module, ModuleType)
    return vars(module)


if __name__ == "__main__":
    PAGE.write_text(python_page())
