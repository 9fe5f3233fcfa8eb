"""Arrays as PostgreSQL reads them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gearflow.stores.postgres import arrays
from gearflow.stores.postgres.arrays import bigints, byteas, floats, ints, smallints, texts, uuids

NUMBERS: list[tuple[Callable[[Any], bytes], int, str, some.SearchStrategy[Any]]] = [
    (bigints, 20, "!q", some.integers(-(1 << 63), (1 << 63) - 1)),
    (ints, 23, "!i", some.integers(-(1 << 31), (1 << 31) - 1)),
    (smallints, 21, "!h", some.integers(-(1 << 15), (1 << 15) - 1)),
    (floats, 701, "!d", some.floats(allow_nan=False)),
]


def elements(encoded: bytes, kind: int) -> list[bytes | None]:
    """The elements of an array in the format of ``array_send``."""
    dimensions, _, element = struct.unpack_from("!3i", encoded)
    assert element == kind
    if dimensions == 0:
        assert len(encoded) == 12
        return []
    count, first = struct.unpack_from("!2i", encoded, 12)
    assert (dimensions, first) == (1, 1)
    found: list[bytes | None] = []
    place = 20
    for _ in range(count):
        (length,) = struct.unpack_from("!i", encoded, place)
        place += 4
        found.append(encoded[place : place + length] if length >= 0 else None)
        place += max(length, 0)
    assert place == len(encoded)
    return found


@pytest.mark.parametrize(("encode", "kind", "form", "values"), NUMBERS, ids=lambda found: str(found)[:20])
@given(data=some.data())
def test_numbers_come_back(
    data: some.DataObject,
    encode: Callable[[Sequence[Any]], bytes],
    kind: int,
    form: str,
    values: some.SearchStrategy[Any],
) -> None:
    given_ = data.draw(some.lists(values))
    found = elements(encode(given_), kind)
    assert [struct.unpack(form, element or b"")[0] for element in found] == given_


@given(some.lists(some.none() | some.binary(max_size=5000)))
def test_bytes_and_nulls_come_back(values: list[bytes | None]) -> None:
    assert elements(byteas(values), 17) == values
    assert elements(byteas([value and memoryview(value) for value in values]), 17) == values


@given(some.none() | some.binary(max_size=5000), some.integers(1, 5))
def test_a_value_that_is_repeated_comes_back(value: bytes | None, count: int) -> None:
    assert elements(byteas([value] * count), 17) == [value] * count
    assert elements(byteas([value, b"another", value]), 17) == [value, b"another", value]
    view = value and memoryview(value)
    assert elements(byteas([view] * count), 17) == [value] * count


@given(some.lists(some.none() | some.binary(min_size=16, max_size=16)))
def test_uuids_come_back(values: list[bytes | None]) -> None:
    assert elements(uuids(values), 2950) == values


@given(some.lists(some.text()))
def test_texts_come_back(values: list[str]) -> None:
    assert elements(texts(values), 25) == [value.encode() for value in values]


@given(some.integers(-(1 << 63), (1 << 63) - 1), some.integers(-(1 << 31), (1 << 31) - 1))
def test_single_numbers_come_back(large: int, small: int) -> None:
    assert arrays.read_int(arrays.bigint(large)) == large
    assert arrays.read_int(arrays.integer(small)) == small
    assert arrays.read_real(arrays.real(large / 7)) == large / 7


@pytest.mark.parametrize(("encode", "value"), [(bigints, 1 << 63), (ints, 1 << 31), (smallints, 1 << 15)])
def test_numbers_that_do_not_fit_are_refused(encode: Callable[[Sequence[int]], bytes], value: int) -> None:
    with pytest.raises(OverflowError):
        encode([value])
