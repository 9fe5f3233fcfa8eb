"""Durations, sizes and numbers as people read them."""

import pytest

from gearflow.quantities import counted, duration, number, short_number, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0, "0 s"),
        (0.0001, "< 1 ms"),
        (0.34, "340 ms"),
        (0.9996, "1 s"),
        (2.5, "2.5 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (2 * 86400, "2 d"),
        (1234 * 86400, "1,234 d"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (128 << 20, "128 MiB"),
        (5 << 30, "5 GiB"),
        (3000 << 40, "3,000 TiB"),
    ],
)
def test_a_size_has_a_binary_unit(count: float, text: str) -> None:
    assert size(count) == text


def test_a_number_of_things_has_the_right_noun() -> None:
    assert counted(1, "job") == "1 job"
    assert counted(0, "job") == "0 jobs"
    assert counted(12_000, "entry", "entries") == "12,000 entries"


@pytest.mark.parametrize(
    ("value", "text", "short"),
    [
        (0, "0", "0"),
        (0.001, "<.01", "<.01"),
        (0.02, "0.02", "0.02"),
        (0.5, "0.5", "0.5"),
        (0.999, "1.0", "1.0"),
        (3.14, "3.1", "3.1"),
        (42.4, "42", "42"),
        (9_999, "9,999", "9,999"),
        (9_999.6, "10,000", "10k"),
        (12_345, "12,345", "12.3k"),
        (999_700, "999,700", "1M"),
        (1_234_567, "1,234,567", "1.23M"),
        (7e12, "7,000,000,000,000", "7T"),
    ],
)
def test_a_number_is_short_where_there_is_little_room(value: float, text: str, short: str) -> None:
    assert number(value) == text
    assert short_number(value) == short


def test_counts_are_exact_as_long_as_they_fit() -> None:
    assert short_number(812_345, exact=1_000_000) == "812,345"
    assert short_number(1_234_567, exact=1_000_000) == "1.23M"
