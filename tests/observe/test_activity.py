"""Percentiles, sums and rates."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.observe import FleetView, ServerView, activity, added, between, percentile, targets
from gearflow.protocol.histograms import BUCKETS, Histogram, bucket_end
from gearflow.protocol.metrics import FunctionMetrics, Metrics
from gearflow.protocol.server_calls import ServerInfo

durations = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def histogram(seconds: list[float]) -> Histogram:
    counts = [0] * BUCKETS
    for each in seconds:
        counts[min(int(each * 1000).bit_length(), BUCKETS - 1)] += 1
    return Histogram(counts=tuple(counts), sum=sum(seconds))


@given(durations, st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_in_the_bucket_of_the_true_one(seconds: list[float], share: float) -> None:
    true = sorted(seconds)[max(1, -int(-share * len(seconds) // 1)) - 1]
    index = int(true * 1000).bit_length()
    found = percentile(histogram(seconds), share)
    assert found is not None
    assert (bucket_end(index - 1) if index else 0) <= found <= bucket_end(index)


def test_no_durations_have_no_percentile() -> None:
    assert percentile(Histogram(), 0.5) is None
    assert percentile((0, 0), 0.5) is None


@given(durations, durations)
def test_a_sum_less_one_part_is_the_other(one: list[float], other: list[float]) -> None:
    both = added([histogram(one), histogram(other)])
    assert both.counts == histogram(one + other).counts
    assert between(histogram(one), both).counts == histogram(other).counts


def view(
    address: str, time: float, *functions: FunctionMetrics, started: float = 0, dead: int = 0
) -> ServerView:
    metrics = Metrics(time=time, started=started, functions=functions, dead=dead)
    return ServerView(address, time, kind="gearflow", metrics=metrics, functions=functions)


def test_rates_are_what_was_counted_between_two_views() -> None:
    before = view("one", 100, FunctionMetrics(function="mail", submitted=50, succeeded=40, failed=1))
    after = view(
        "one",
        110,
        FunctionMetrics(
            function="mail", submitted=70, succeeded=70, failed=2, dead=1, run=Histogram(counts=(0, 4))
        ),
        FunctionMetrics(function="new", submitted=10),
        FunctionMetrics(function="idle"),
    )
    found = activity(before, after)
    assert set(found) == {"mail", "new"}
    mail = found["mail"]
    assert mail.submitted == 2
    assert mail.ended == pytest.approx(3.2)
    assert mail.lost == pytest.approx(0.2)
    assert mail.run.counts == (0, 4)
    assert found["new"].submitted == 1


def test_after_a_restart_the_rates_are_those_since_then() -> None:
    before = view("one", 100, FunctionMetrics(function="mail", submitted=50))
    after = view("one", 110, FunctionMetrics(function="mail", submitted=60), started=105)
    assert activity(before, after)["mail"].submitted == 12


def test_without_counts_there_are_no_rates() -> None:
    away = ServerView("one", 0, error="connection refused")
    assert activity(away, view("one", 1)) == {}
    assert activity(view("one", 1), view("one", 1)) == {}


def test_a_fleet_adds_up_its_servers() -> None:
    one = view("one", 10, FunctionMetrics(function="b", waiting=(1, 2, 3), oldest=5, slots=4), dead=2)
    two = view(
        "two",
        10,
        FunctionMetrics(function="a", running=1),
        FunctionMetrics(function="b", waiting=(0, 1, 0), oldest=9, paused=True, slots=1),
        dead=3,
    )
    fleet = FleetView((one, two, ServerView("three", 10, error="connection refused")))
    a, b = fleet.functions
    assert a == FunctionMetrics(function="a", running=1)
    assert (b.waiting, b.oldest, b.paused, b.slots) == ((1, 3, 3), 9, True, 5)
    assert fleet.dead == 5
    later = FleetView(
        (
            view("one", 20, FunctionMetrics(function="b", started=10)),
            view("two", 15, FunctionMetrics(function="b", started=10)),
        )
    )
    assert later.activity_since(fleet)["b"].started == 3


def in_group(address: str, server: str, dead: int) -> ServerView:
    """A server of a group, with a job that runs."""
    info = ServerInfo(
        version="gearflow-1",
        durable=True,
        store="postgres",
        functions=(),
        keep=1,
        max_deaths=3,
        jobs=1,
        group="g",
        server=server,
        address=f"{server}:4730",
    )
    return replace(view(address, 10, FunctionMetrics(function="b", running=1), dead=dead), info=info)


def test_a_group_has_its_dead_letters_once_and_a_server_with_two_addresses_counts_once() -> None:
    one, two = in_group("one:4730", "one", 3), in_group("two:4730", "two", 2)
    again = in_group("balancer:4730", "one", 3)
    fleet = FleetView((one, again, two))
    assert fleet.distinct == (one, two)
    assert fleet.dead == 3
    assert fleet.functions == (FunctionMetrics(function="b", running=2),)
    assert targets(fleet.distinct) == [one]
    assert targets(fleet.distinct, "two:4730") == [two]
    assert again.name == "one:4730"
