"""Settings of the store reach the part of the broker that uses them."""

from __future__ import annotations

from gearflow.broker import Broker
from gearflow.broker.settings import Settings
from gearflow.broker.storage import Contents, Setting, StoredJob


def recorded(kind: str) -> tuple[Settings, list[tuple[bytes, bytes]]]:
    settings, calls = Settings(), list[tuple[bytes, bytes]]()
    settings.on(kind, lambda name, value: calls.append((name, value)))
    return settings, calls


def test_each_setting_of_a_kind_is_called_back_when_it_is_loaded() -> None:
    settings, calls = recorded("limit")
    settings.load([Setting(b"shopify", "limit", b"{}"), Setting(b"nightly", "schedule", b"[]")])
    assert calls == [(b"shopify", b"{}")]
    assert settings.values == {"limit": {b"shopify": b"{}"}, "schedule": {b"nightly": b"[]"}}


def test_only_settings_that_differ_are_called_back_when_all_are_replaced() -> None:
    settings, calls = recorded("limit")
    kept, changed = Setting(b"kept", "limit", b"1"), Setting(b"changed", "limit", b"1")
    settings.load([kept, changed, Setting(b"gone", "limit", b"1")])
    calls.clear()
    settings.replace([kept, changed._replace(value=b"2"), Setting(b"new", "limit", b"1")])
    assert calls == [(b"gone", b""), (b"changed", b"2"), (b"new", b"1")]
    assert settings.values == {"limit": {b"kept": b"1", b"changed": b"2", b"new": b"1"}}


def test_a_setting_of_another_kind_with_the_same_name_is_another_setting() -> None:
    settings, calls = recorded("limit")
    settings.load([Setting(b"a", "limit", b"1"), Setting(b"a", "function", b"2")])
    settings.replace([Setting(b"a", "function", b"2")])
    assert calls == [(b"a", b"1"), (b"a", b"")]
    assert (settings.get("limit", b"a"), settings.get("function", b"a")) == (b"", b"2")


def test_removing_a_setting_that_is_not_there_changes_nothing() -> None:
    settings, calls = recorded("limit")
    settings.apply(Setting(b"a", "limit", b""))
    assert calls == []


def test_a_broker_has_the_settings_of_its_store_before_its_jobs() -> None:
    broker = Broker(b"H:test:", lambda _: b"")
    calls: list[tuple[bytes, bytes, int]] = []
    broker.core.settings.on(
        "colour", lambda name, value: calls.append((name, value, len(broker.jobs.by_number)))
    )
    job = StoredJob(1, b"resize", b"", 1, 0.0, 0.0, None, b"", 0, 0, b"cat")
    broker.restore(Contents(b"test", 2, iter([job]), settings=[Setting(b"a", "colour", b"1")]))
    broker.reload_settings([Setting(b"b", "colour", b"2")])
    assert calls == [(b"a", b"1", 0), (b"a", b"", 1), (b"b", b"2", 1)]
