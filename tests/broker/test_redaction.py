"""What workers report not to be shown is hidden from operators, and stays so."""

import json
from base64 import b64decode

import pytest

from gearflow.broker import redaction
from gearflow.broker.storage import Setting
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.workers import REPORT
from tests.broker.harness import Durable, Peer
from tests.broker.test_edit import settle
from tests.broker.test_job_lists import ask, pages, submit


@pytest.fixture
def world() -> Durable:
    world = Durable()
    submit(world, payload=b'{"card":"4111","order":{"card":"4222","item":"pear"}}')
    return world


def shown(world: Durable) -> str | None:
    (job,) = pages(world, payload=1000)
    return job.payload


def report(world: Durable, **redact: list[str]) -> None:
    worker = world.worker(*(name.encode() for name in redact))
    (created, end) = tell(world, worker, redact)
    assert isinstance(created, p.JobCreated)
    assert isinstance(end, p.WorkComplete)
    worker.leave()


def tell(world: Durable, worker: Peer, redact: dict[str, list[str]]) -> list[p.Packet | bytes]:
    said = worker(p.SubmitJob(REPORT, b"", json.dumps({"redact": redact}).encode()))
    settle(world)
    world.finish()
    settle(world)
    return said + worker.read()


def test_the_fields_of_a_report_are_hidden_at_every_depth(world: Durable) -> None:
    report(world, work=["card"])
    assert json.loads(shown(world) or "") == {
        "card": "(redacted)",
        "order": {"card": "(redacted)", "item": "pear"},
    }


@pytest.mark.parametrize("payload", [b'{"card":"4111","a":"\\ud800"}', b'{"card":"4111","\\udfff":1}'])
def test_half_a_character_in_a_payload_stays_as_it_is_written(payload: bytes) -> None:
    world = Durable()
    submit(world, payload=payload)
    report(world, work=["card"])
    assert (shown(world) or "").replace(" ", "") == payload.decode().replace("4111", "(redacted)")
    assert not pages(world, text="4111")
    assert len(pages(world, text="redacted")) == 1


@pytest.mark.parametrize("value", [b"garbage", b"3", b"\xff", b"{}", b"[" * 100_000])
def test_a_damaged_setting_hides_the_whole_payload(world: Durable, value: bytes) -> None:
    world.disk.write([Setting(b"work", redaction.KIND, value)])
    assert shown(world.restarted()) == "(53 bytes, not shown because the task redacts its payload)"


def test_they_stay_hidden_without_a_worker_and_after_a_restart(world: Durable) -> None:
    report(world, work=["*"], other=[])
    report(world, other=["x"])
    for _ in range(2):
        assert shown(world) == "(53 bytes, not shown because the task redacts its payload)"
        world = world.restarted()


def test_a_report_with_no_fields_shows_them_again(world: Durable) -> None:
    report(world, work=["card"])
    report(world, work=[])
    assert "4111" in (shown(world) or "")
    assert "4111" in (shown(world.restarted()) or "")


def test_they_are_hidden_if_that_cannot_be_kept_and_kept_with_the_next_report(world: Durable) -> None:
    world.disk.full = True
    report(world, work=["card"])
    assert "4111" not in (shown(world) or "")
    world.disk.full = False
    assert "4111" in (shown(world.restarted()) or "")
    report(world, work=["card"])
    assert "4111" not in (shown(world.restarted()) or "")


def test_a_worker_has_no_say_in_functions_that_it_does_not_offer(world: Durable) -> None:
    report(world, work=["card"])
    tell(world, world.worker(b"other"), {"work": [], "other": ["x"]})
    assert "4111" not in (shown(world) or "")
    tell(world, world.worker(b"work"), {"work": []})
    assert "4111" in (shown(world) or "")


def test_functions_are_bounded(world: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_MOST", 2)
    report(world, a=["x"], b=["x"], work=["card"])
    assert "4111" in (shown(world) or "")
    report(world, a=["x", "y"])
    report(world, a=[])
    report(world, work=["card"])
    assert "4111" not in (shown(world) or "")


def test_a_dead_letter_does_not_show_them_either(world: Durable) -> None:
    report(world, work=["card"])
    worker = world.worker()
    handle = worker.grab()
    assert handle is not None
    worker(p.WorkFail(handle))
    world.commit()
    letter = ask(world, api.DEAD, action="show", handle=handle.decode())
    hidden = {"card": "(redacted)", "order": {"card": "(redacted)", "item": "pear"}}
    assert json.loads(letter["text"]) == json.loads(b64decode(letter["payload"])) == hidden
    assert ask(world, api.DEAD, action="replay", handle=handle.decode())["jobs"] == 1
    (again,) = worker(p.GrabJob())
    assert isinstance(again, p.JobAssign)
    assert b"4111" in again.workload
