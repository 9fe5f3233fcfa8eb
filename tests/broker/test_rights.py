"""Attacks with tokens of few rights: on every packet, every reserved function with each of its actions, and
every text command. What a token has no right to is refused in the right form, and nothing changes by it.

The rows are what the documentation promises, by hand, and not the broker's tables.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

import pytest
from pydantic import BaseModel

from gearflow.broker import rights
from gearflow.broker.auth import Unauthorized
from gearflow.broker.guard import Forbidden
from gearflow.protocol import admin
from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import AUTH
from gearflow.protocol.jobs import BulkRequest
from gearflow.protocol.limits import LimitRequest, PolicyRequest
from gearflow.protocol.packets import Packet
from gearflow.protocol.rights import ALL, Grant, Right, Tokens, digest_of, read_rights
from gearflow.protocol.schedules import ScheduleRequest
from gearflow.protocol.server_calls import DeadRequest, Fault
from gearflow.server import admin as answers
from tests.broker.harness import Durable, Peer

KINDS: Final = ("view", "submit", "work", "operate", "submit,work", "all")
"""Rights of the tokens. Each token is its rights."""


class Shell(Durable):
    """A broker with the text commands of a server."""

    def answer_text(self, line: bytes) -> bytes | Iterator[bytes]:
        return answers.answer(self.broker, line)


class Scene:
    """A server with jobs, dead letters, limits, policies and schedules, for which others are to blame."""

    def __init__(self) -> None:
        world = self.world = Shell()
        world.broker.guards.replace_tokens(tokens(*KINDS))
        self.boss = self.peer("all")
        self.worker = self.peer("all").can_do(b"work", b"bad")
        self.running = self.background(b"work")
        assert self.worker.grab() == self.running
        self.dead = self.background(b"bad")
        assert self.worker.grab() == self.dead
        self.worker(p.WorkFail(self.dead))
        self.world.commit()
        self.waiting = self.background(b"work")
        self.attached = self.boss.submit(b"work")
        for name, request in (
            (b"gearflow:policy", {"action": "set", "function": "work", "policy": {"keep": 7.0}}),
            (b"gearflow:limit", LIMITS),
            (b"gearflow:schedule", {"do": "put", "schedules": [SCHEDULE]}),
        ):
            self.boss(call(name, **request))
            self.world.work()
            assert "fault" not in answered(self.boss.read())
        self.before = self.dump()

    def peer(self, token: str) -> Peer:
        """A connection that has sent its token."""
        peer = self.world.peer(token)
        *_, done = peer(p.OptionReq(b"exceptions"), p.SubmitJob(AUTH, b"", token.encode()))
        assert isinstance(done, p.WorkComplete)
        return peer

    def background(self, function: bytes) -> bytes:
        """A background job; its handle."""
        self.boss(p.SubmitJobBg(function, b"", b"x"))
        self.world.commit()
        (created,) = self.boss.read()
        assert isinstance(created, p.JobCreated)
        return created.handle

    def send(self, peer: Peer, data: bytes) -> list[Packet | bytes]:
        """What a peer is sent for its bytes, once all has been done that follows from them."""
        got = peer(data)
        self.world.work()
        return got + peer.read()

    def dump(self) -> list[str]:
        """What an operator sees of the server."""
        shown: list[str] = []
        for name, request in (
            (b"gearflow:dead", {"action": "list"}),
            (b"gearflow:limits", {}),
            (b"gearflow:policy", {"action": "list"}),
            (b"gearflow:schedules", {}),
            (b"gearflow:info", {}),
            *((b"gearflow:info", {"handle": handle.decode()}) for handle in (self.running, self.waiting)),
        ):
            shown.append(answered(self.send(self.boss, call(name, **request))))
        lines = b"status\n", b"prioritystatus\n", b"show jobs\n", b"show unique jobs\n"
        return shown + [repr(self.send(self.boss, line)) for line in lines]


LIMITS: Final = {
    "action": "apply",
    "origin": "code",
    "limits": {"db": {"count": 3}},
    "functions": {"other": {"limits": [{"limit": "db"}]}},
}
SCHEDULE: Final = {"name": "nightly", "function": "report", "when": {"cron": "0 3 * * *"}}


def tokens(*kinds: str) -> Tokens:
    """A token for each kind, which is its rights."""
    return Tokens([Grant(digest_of(kind.encode()), read_rights(kind), f"the {kind}") for kind in kinds])


def call(name: bytes, /, **request: Any) -> bytes:
    return encode(p.SubmitJob(name, b"", json.dumps(request).encode()))


def answered(got: Sequence[Packet | bytes]) -> str:
    """The answer to a call, without its handle."""
    match got[-1]:
        case p.WorkComplete(_, result):
            return result.decode()
        case p.WorkException(_, exception):
            return f"fault {exception.decode()}"
        case other:
            raise AssertionError(other)


Form: TypeAlias = Literal["error", "close", "fault", "text"]
"""The form of the refusal."""


class Attack(NamedTuple):
    """Something to try, and the rights of which one is enough for it."""

    name: str
    may: str
    send: Callable[[Scene], bytes]
    form: Form


def packet(what: Packet, may: str, form: Form = "error", name: str = "") -> Attack:
    """An attack by a packet."""
    return Attack(name or type(what).__name__, may, partial(_encoded, what), form)


def _encoded(what: Packet, scene: Scene) -> bytes:
    return encode(what)


def about_running(make: Callable[[bytes], Packet], may: str, form: Form, name: str) -> Attack:
    """An attack by a packet that has the handle of a job which another connection runs."""

    def send(scene: Scene) -> bytes:
        return encode(make(scene.running))

    return Attack(name, may, send, form)


def function(name: str, may: str, request: dict[str, Any] | Callable[[Scene], dict[str, Any]]) -> Attack:
    """An attack by a call of a reserved function."""
    shown = "" if callable(request) else " ".join(map(str, request.values()))[:40]

    def send(scene: Scene) -> bytes:
        body = request(scene) if callable(request) else request
        return call(f"gearflow:{name}".encode(), **body)

    return Attack(f"{name} {shown}", may, send, "fault")


def text(line: str, may: str) -> Attack:
    """An attack by a text command."""

    def send(scene: Scene) -> bytes:
        return line.format(waiting=scene.waiting.decode()).encode() + b"\n"

    return Attack(line, may, send, "text")


def work(kind: type[Any], *fields: bytes) -> Attack:
    """An attack on a job that another connection runs."""
    return about_running(lambda handle: kind(handle, *fields), "work", "close", kind.__name__)


READ: Final = "view operate submit"
EVERYONE: Final = "view submit work operate"

PACKETS: Final = [
    packet(p.SubmitJob(b"new", b"", b"x"), "submit"),
    packet(p.SubmitJobHigh(b"new", b"", b"x"), "submit"),
    packet(p.SubmitJobLow(b"new", b"", b"x"), "submit"),
    packet(p.SubmitJobBg(b"new", b"", b"x"), "submit"),
    packet(p.SubmitJobHighBg(b"new", b"", b"x"), "submit"),
    packet(p.SubmitJobLowBg(b"new", b"", b"x"), "submit"),
    packet(p.SubmitJobEpoch(b"new", b"", b"1", b"x"), "submit"),
    packet(p.SubmitReduceJob(b"new", b"", b"r", b"", b"x"), "submit"),
    packet(p.SubmitReduceJobBackground(b"new", b"", b"r", b"", b"x"), "submit"),
    packet(p.CanDo(b"work"), "work", "close"),
    packet(p.CanDoTimeout(b"work", b"1"), "work", "close"),
    packet(p.CantDo(b"work"), "work", "close"),
    packet(p.ResetAbilities(), "work", "close"),
    packet(p.PreSleep(), "work", "close"),
    packet(p.GrabJob(), "work"),
    packet(p.GrabJobUniq(), "work"),
    packet(p.GrabJobAll(), "work"),
    work(p.WorkData, b"x"),
    work(p.WorkWarning, b"x"),
    work(p.WorkComplete, b"x"),
    work(p.WorkFail),
    work(p.WorkException, b"x"),
    about_running(lambda handle: p.WorkStatus(handle, b"1", b"0"), EVERYONE, "close", "WorkStatus"),
    about_running(p.GetStatus, READ, "error", "GetStatus"),
    packet(p.GetStatusUnique(b"u"), READ),
    packet(p.EchoReq(b"x"), EVERYONE),
    packet(p.OptionReq(b"gearflow"), EVERYONE),
    packet(p.SetClientId(b"me"), EVERYONE),
]


def of_waiting(scene: Scene) -> dict[str, Any]:
    return {"handle": scene.waiting.decode()}


def of_dead(action: str) -> Callable[[Scene], dict[str, Any]]:
    return lambda scene: {"action": action, "handle": scene.dead.decode()}


FUNCTIONS: Final = [
    packet(p.SubmitJob(AUTH, b"", b"view"), EVERYONE, "fault", "auth"),
    packet(p.SubmitJob(b"gearflow:submit", b"", b'{"function":"new"}\nx'), "submit", "fault", "submit"),
    packet(
        p.SubmitJob(b"gearflow:submit", b"", b'{"function":"new","detached":true}\nx'),
        "submit",
        "fault",
        "submit detached",
    ),
    packet(
        p.SubmitJobBg(b"gearflow:submit", b"", b'{"function":"new"}\nx'),
        "submit",
        "error",
        "submit in a background packet",
    ),
    packet(
        p.SubmitReduceJob(b"gearflow:submit", b"", b"r", b"", b'{"function":"new"}\nx'),
        "submit",
        "fault",
        "submit in a reduce packet",
    ),
    packet(
        p.SubmitJobHigh(b"gearflow:pause", b"", b'{"function":"work"}'),
        "operate",
        "fault",
        "pause in a packet of high priority",
    ),
    packet(
        p.SubmitReduceJob(b"gearflow:pause", b"", b"r", b"", b'{"function":"work"}'),
        "operate",
        "fault",
        "pause in a reduce packet",
    ),
    function("result", READ, lambda scene: {**of_waiting(scene), "timeout": 0.0}),
    function("stream", "submit", lambda scene: {"handle": scene.dead.decode()}),
    function("stream", READ, lambda scene: {"handle": scene.dead.decode(), "lag": "skip"}),
    function("watch", READ, lambda scene: {"handle": scene.dead.decode()}),
    function("info", EVERYONE, {}),
    function("info", READ, of_waiting),
    function("cancel", "submit operate", of_waiting),
    function("edit", "submit operate", lambda scene: {**of_waiting(scene), "priority": "high"}),
    function("detach", EVERYONE, lambda scene: {"handle": scene.attached.decode()}),
    function("retry", "work", lambda scene: {"handle": scene.running.decode()}),
    function("release", "work", lambda scene: {"handle": scene.running.decode()}),
    function("events", "work", {}),
    function("report", "work", {"overdue": {"work": 3}}),
    function("workers", READ, {}),
    function("workers", "view operate", {"jobs": 1}),
    function("group", "view operate", {}),
    function("metrics", "view operate", {}),
    function("jobs", "view operate", {}),
    *(function("bulk", "view operate", {"do": do}) for do in ("count", "errors")),
    *(function("bulk", "operate", {"do": do}) for do in ("cancel", "replay", "purge")),
    function("dead", "view operate", {"action": "list"}),
    function("dead", "view operate", of_dead("show")),
    function("dead", "operate", of_dead("replay")),
    function("dead", "operate", of_dead("purge")),
    function("schedules", "view operate work", {}),
    function("schedule", "operate", {"do": "put", "schedules": [{**SCHEDULE, "name": "mine"}]}),
    function("schedule", "operate", {"do": "apply", "prune": True}),
    function("schedule", "view operate", {"do": "apply", "prune": True, "dry_run": True}),
    *(
        function("schedule", "operate", {"do": do, "name": "nightly"})
        for do in ("delete", "pause", "resume", "trigger")
    ),
    function("schedule", "operate", {"do": "backfill", "name": "nightly", "since": 1.0, "until": 200000.0}),
    function("limits", "view operate", {}),
    function("limit", "operate", {"action": "set", "name": "db", "value": {"count": 9}}),
    *(
        function("limit", "operate", {"action": action, "name": "db"})
        for action in ("unset", "pause", "resume")
    ),
    function("limit", "operate", {"action": "apply", "origin": "code", "prune": True}),
    function(
        "limit", "view operate work", {"action": "apply", "origin": "code", "prune": True, "dry_run": True}
    ),
    function("policy", "view operate", {"action": "list"}),
    function("policy", "operate", {"action": "set", "function": "work", "policy": {"keep": 1.0}}),
    function("policy", "operate", {"action": "unset", "function": "work"}),
    function("pause", "operate", {"function": "work"}),
    function("purge", "operate", {"function": "work"}),
    function("reopen", "operate", {}),
    function("quiet", "operate", {}),
]

COMMANDS: Final = [
    text("status", READ),
    text("STATUS", READ),
    text("version", EVERYONE),
    *(
        text(line, "view operate")
        for line in ("prioritystatus", "workers", "show jobs", "Show Unique Jobs", "getpid", "verbose")
    ),
    *(
        text(line, "operate")
        for line in ("maxqueue work 1", "cancel job {waiting}", "create function mine", "drop function idle")
    ),
]

ATTACKS: Final = [*PACKETS, *FUNCTIONS, *COMMANDS]


def is_refused(attack: Attack, got: Sequence[Packet | bytes]) -> bool:
    """Whether the answer is a refusal for lack of rights, in the form that belongs to it."""
    match attack.form, got:
        case "error", [p.Error(b"FORBIDDEN", _)]:
            return True
        case "text", [bytes(line)] if line.startswith(b"ERR FORBIDDEN "):
            return True
        case "fault", [p.JobCreated(handle), p.WorkException(other, exception)] if handle == other:
            return Fault.model_validate_json(exception).type == "gearflow:forbidden"
        case _:
            assert b"forbidden" not in repr(got).lower().encode()
            return False


def try_it(scene: Scene, attack: Attack, peer: Peer, sent: Callable[[bytes], Iterator[bytes]]) -> bool:
    """Whether an attack is refused."""
    got: list[Packet | bytes] = []
    try:
        for data in sent(attack.send(scene)):
            got += scene.send(peer, data)
    except Forbidden:
        assert attack.form == "close"
        (error,) = peer.read()
        assert isinstance(error, p.Error)
        assert error.code == b"FORBIDDEN"
        peer.leave()
        return True
    if attack.form == "close":
        assert not any(isinstance(each, p.Error) and each.code == b"FORBIDDEN" for each in got)
        return False
    return is_refused(attack, got)


def in_one(data: bytes) -> Iterator[bytes]:
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    for position in range(len(data)):
        yield data[position : position + 1]


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize("attack", [*PACKETS, *COMMANDS], ids=lambda attack: attack.name)
def test_a_token_has_the_packets_and_commands_of_its_rights(scene: Scene, attack: Attack) -> None:
    attack_with_all(scene, attack)


@pytest.mark.parametrize("attack", FUNCTIONS, ids=lambda attack: attack.name)
def test_a_token_has_the_functions_of_its_rights(scene: Scene, attack: Attack) -> None:
    assert f"gearflow:{attack.name.split()[0]}" in names(scene)
    attack_with_all(scene, attack)


def attack_with_all(scene: Scene, attack: Attack) -> None:
    """Try it with each kind of token. Those that may do it do it to a server of their own."""
    for kind in KINDS:
        if kind == "all" or not {*kind.split(",")}.isdisjoint(attack.may.split()):
            other = Scene()
            assert not try_it(other, attack, other.peer(kind), in_one), kind
        else:
            for sent in (in_one, byte_by_byte):
                assert try_it(scene, attack, scene.peer(kind), sent), kind
    assert scene.dump() == scene.before


def names(scene: Scene) -> list[str]:
    """The reserved functions of the server."""
    found: list[str] = json.loads(answered(scene.send(scene.boss, call(b"gearflow:info"))))["functions"]
    return found


def test_the_tables_say_of_everything_what_it_needs(scene: Scene) -> None:
    assert rights.PACKETS.keys() == scene.world.broker.handlers().keys()
    assert rights.FUNCTIONS.keys() >= {name.encode() for name in names(scene)}
    assert rights.COMMANDS.keys() == {*get_args(admin.Command)}


def test_every_packet_function_and_command_is_attacked(scene: Scene) -> None:
    sent = {int.from_bytes(attack.send(scene)[4:8]) for attack in PACKETS}
    assert sent == {int(kind) for kind in scene.world.broker.handlers()}
    assert {f"gearflow:{attack.name.split()[0]}" for attack in FUNCTIONS} >= {*names(scene)}
    lines = [attack.send(scene).rstrip() for attack in COMMANDS]
    commands = {type(admin.parse_command(line)) for line in lines}
    assert commands == {*get_args(admin.Command)} - {admin.CommandRefused}


@pytest.mark.parametrize(
    ("request_class", "key"),
    [
        (BulkRequest, "do"),
        (DeadRequest, "action"),
        (LimitRequest, "action"),
        (PolicyRequest, "action"),
        (ScheduleRequest, "do"),
    ],
)
def test_every_action_of_a_function_is_attacked(
    scene: Scene, request_class: type[BaseModel], key: str
) -> None:
    name = f"gearflow:{request_class.__name__.removesuffix('Request').lower()}".encode()
    bodies = [attack.send(scene)[12:] for attack in FUNCTIONS]
    requests = [json.loads(body.split(b"\0")[2]) for body in bodies if body.startswith(name + b"\0")]
    assert {request[key] for request in requests} == {*get_args(request_class.model_fields[key].annotation)}


def test_a_connection_learns_its_rights_from_the_server(scene: Scene) -> None:
    for kind, words in (("operate", ["operate"]), ("submit,work", ["submit", "work"]), ("all", None)):
        info = json.loads(answered(scene.send(scene.peer(kind), call(b"gearflow:info"))))
        assert info.get("rights") == words


def test_without_exceptions_a_refusal_is_a_warning_and_a_failure(scene: Scene) -> None:
    peer = scene.world.peer()
    peer(p.SubmitJob(AUTH, b"", b"submit"))
    created, warning, failure = peer(call(b"gearflow:pause", function="work"))
    assert isinstance(created, p.JobCreated)
    reason = b"gearflow:pause needs the right operate, and the token of this connection has: submit"
    assert (warning, failure) == (p.WorkWarning(created.handle, reason), p.WorkFail(created.handle))


@pytest.mark.parametrize("function", ["dead", "policy", "bulk", "schedule"])
def test_a_refusal_of_a_look_names_the_right_to_look(scene: Scene, function: str) -> None:
    refused = answered(scene.peer("submit")(call(b"gearflow:" + function.encode(), action="list")))
    assert f"gearflow:{function} needs the right view, and the token" in refused


def test_a_refusal_names_what_is_needed_and_is_logged_with_the_token(scene: Scene) -> None:
    peer = scene.peer("view")
    (error,) = peer(p.SubmitJobBg(b"new", b"", b"x"))
    reason = "SUBMIT_JOB_BG needs the right submit, and the token of this connection has: view"
    assert error == p.Error(b"FORBIDDEN", reason.encode())
    (line,) = peer(b"drop function x\n")
    assert isinstance(line, bytes)
    assert line.startswith(b"ERR FORBIDDEN the+command+drop+needs+the+right+operate,+and+the+token")
    refused = peer(call(b"gearflow:dead", action="purge"))
    assert "this call needs the right operate" in answered(refused)
    notices = scene.world.broker.outgoing.notices
    assert [notice.subject for notice in notices] == [b"view (the view)"] * 3
    assert notices[0].text % notices[0].arguments == (
        f"refused, as the token of the connection has no right to it: {reason}"
    )


def test_a_worker_without_the_right_gets_an_error_and_is_closed(scene: Scene) -> None:
    peer = scene.peer("submit")
    with pytest.raises(Forbidden, match="CAN_DO needs the right work"):
        peer(p.CanDo(b"work"), p.GrabJob(), p.SubmitJob(b"new", b"", b"x"))
    assert [type(answer) for answer in peer.read()] == [p.Error]
    assert scene.dump() == scene.before


def test_what_waits_for_the_store_is_refused_in_its_order(scene: Scene) -> None:
    peer = scene.peer("submit")
    new, purge = p.SubmitJobBg(b"new", b"", b"x"), p.SubmitJobBg(b"gearflow:purge", b"", b"{}")
    peer(new, purge, call(b"gearflow:pause", function="work"), b"getpid\n", new, p.GrabJob())
    scene.world.work()
    first, refused, _, fault, line, second, grab = peer.read()
    assert isinstance(first, p.JobCreated)
    assert isinstance(refused, p.Error)
    assert refused.code == b"INVALID_FUNCTION_NAME"
    assert "gearflow:forbidden" in answered([fault])
    assert isinstance(line, bytes)
    assert line.startswith(b"ERR FORBIDDEN ")
    assert isinstance(second, p.JobCreated)
    assert isinstance(grab, p.Error)


def test_a_connection_with_all_rights_meets_no_guard(scene: Scene) -> None:
    assert scene.boss.session.parser is scene.world.broker.parser
    assert scene.boss.session.grant is None
    assert scene.peer("view").session.parser is not scene.world.broker.parser


# ------------------------------------------------------------------------------------------ other tokens


def test_new_rights_hold_at_once_and_lost_ones_end_the_connection(scene: Scene) -> None:
    peers = {kind: scene.peer(kind) for kind in ("view", "submit", "work", "operate", "submit,work")}
    renewed = {"view": "view,submit", "submit": "all", "operate": "operate", "submit,work": "submit"}
    new = Tokens(Grant(digest_of(kind.encode()), read_rights(words)) for kind, words in renewed.items())
    gone = scene.world.broker.guards.replace_tokens(new)
    # The token of the boss and of its worker is gone, too.
    assert {*gone} == {peers[kind].session for kind in ("work", "submit,work")} | {
        scene.boss.session,
        scene.worker.session,
    }
    assert peers["view"].submit()
    assert peers["submit"].session.parser is scene.world.broker.parser
    assert answered(peers["submit"](call(b"gearflow:reopen"))) == '{"was_closed":false}'
    (error,) = peers["operate"](p.SubmitJob(b"new", b"", b"x"))
    assert isinstance(error, p.Error)
    with pytest.raises(Unauthorized):
        scene.world.peer()(p.SubmitJob(AUTH, b"", b"work"))


def test_the_parts_of_a_packet_are_kept_when_rights_change(scene: Scene) -> None:
    peer = scene.peer("view")
    data = encode(p.SubmitJob(b"new", b"", b"x"))
    assert peer(data[:15]) == []
    scene.world.broker.guards.replace_tokens(tokens("submit,work", "all"))
    new = Tokens([Grant(digest_of(b"view"), Right.VIEW | Right.SUBMIT), Grant(digest_of(b"all"), ALL)])
    scene.world.broker.guards.replace_tokens(new)
    (created,) = peer(data[15:])
    assert isinstance(created, p.JobCreated)


def test_a_connection_that_ends_is_forgotten(scene: Scene) -> None:
    before = len(scene.world.broker.auth.grants)
    scene.peer("view").leave()
    assert len(scene.world.broker.auth.grants) == before
