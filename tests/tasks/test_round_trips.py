"""What goes out comes back the same: arguments and results of every kind of type, at every depth."""

import dataclasses
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypeVar, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, Json, RootModel, computed_field
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

from gearflow.errors import PayloadInvalid
from gearflow.tasks.payload import PayloadCodec
from gearflow.tasks.signature import TaskSignature

T = TypeVar("T")

NOT_UTF_8 = b"\x80\xff\0"


class Colour(Enum):
    RED = "red"
    BLUE = 2


class Size(IntEnum):
    SMALL = 1


class Word(StrEnum):
    YES = "yes"


class Blob(BaseModel):
    data: bytes
    weight: float = math.inf


class Hexed(BaseModel):
    model_config = ConfigDict(ser_json_bytes="hex", val_json_bytes="hex")
    data: bytes


class Nested(BaseModel):
    blob: Blob
    blobs: list[Blob] = []
    by_name: dict[str, Blob] = {}
    either: Blob | Hexed | None = None


class Tree(BaseModel):
    data: bytes
    children: "list[Tree]" = []


class Box(BaseModel, Generic[T]):
    content: T


class Numbers(RootModel[list[float]]):
    pass


class Aliased(BaseModel):
    plain: int = Field(alias="Plain")
    only_read: int = Field(validation_alias="onlyRead")
    only_written: int = Field(serialization_alias="onlyWritten")
    different: int = Field(validation_alias="in", serialization_alias="out")
    choices: int = Field(
        validation_alias=AliasChoices("one", AliasPath("two", 0)), serialization_alias="three"
    )
    path: int = Field(validation_alias=AliasPath("list", 1))


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_alias=False, validate_by_name=True)
    long_name: bytes


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    side: float

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def area(self) -> float:
        return self.side**2


class Described(BaseModel):
    """A model whose fields are called as the parts of a schema are."""

    model_config = ConfigDict(protected_namespaces=())
    type: bytes
    default: bytes
    function: bytes
    config: bytes
    cls: bytes
    metadata: bytes
    fields: bytes
    expected: bytes


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    name: bytes


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: bytes


@dataclasses.dataclass
class Data:
    data: bytes
    weight: float
    inner: "Data | None" = None


class Dict(TypedDict):
    data: bytes
    weight: NotRequired[float]


class Pair(NamedTuple):
    data: bytes
    weight: float = 1.0


def codec_of(kind: Any) -> PayloadCodec:
    """The codec of a task that takes and returns values of a type, beside another argument."""

    def echo(value: Any, other: int = 0) -> Any:
        raise NotImplementedError

    echo.__annotations__.update({"value": kind, "return": kind})
    return PayloadCodec(TaskSignature(echo, "echo"), "echo")


def codec_of_sole(kind: Any) -> PayloadCodec:
    def echo(value: Any) -> Any:
        raise NotImplementedError

    echo.__annotations__.update({"value": kind, "return": kind})
    return PayloadCodec(TaskSignature(echo, "echo"), "echo")


def assert_round_trip(kind: Any, value: object) -> None:
    for codec in (codec_of(kind), codec_of_sole(kind)):
        workload = codec.encode((value,), {})
        workload.decode()  # JSON is UTF-8
        there = codec.decode(workload)["value"]
        back = codec.decode_result(codec.encode_result(value))
        for arrived in (there, back):
            assert arrived == value or repr(arrived) == repr(value)  # nan is not equal to itself
            assert type(arrived) is type(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 10**30),
        (bool, True),
        (float, math.nan),
        (float, -math.inf),
        (complex, 1j),
        (datetime, datetime(2024, 2, 29, 1, 2, 3, 4, timezone(timedelta(hours=-3)))),
        (datetime, datetime(2024, 2, 29, 1, 2, 3)),  # naive ones arrive naive
        (date, date(1, 1, 1)),
        (time, time(1, 2, 3, 4)),
        (timedelta, timedelta(days=-1, microseconds=1)),
        (Decimal, Decimal("0.1000")),
        (Decimal, Decimal("1E+400")),
        (UUID, UUID(int=7)),
        (PurePosixPath, PurePosixPath("/a")),
        (Colour, Colour.RED),
        (Colour, Colour.BLUE),
        (Size, Size.SMALL),
        (Word, Word.YES),
        (Literal["a", 1], 1),
        (Annotated[int, Field(gt=0)], 1),
        (None, None),
        (int | None, None),
        (bytes | None, NOT_UTF_8),
        (Blob | None, Blob(data=NOT_UTF_8)),
        (int | str, "1"),
        (int | list[int], [1]),
        (list[bytes], [NOT_UTF_8]),
        (set[bytes], {NOT_UTF_8}),
        (frozenset[int], frozenset({1})),
        (tuple[int, bytes, float], (1, NOT_UTF_8, math.inf)),
        (tuple[float, ...], (math.nan, 1.0)),
        (dict[int, float], {1: math.inf}),
        (dict[bytes, bytes], {NOT_UTF_8: NOT_UTF_8}),
        (dict[float, int], {math.inf: 1}),
        (dict[date, int], {date(2024, 1, 1): 1}),
        (dict[Colour, int], {Colour.RED: 1}),
        (dict[UUID, list[dict[str, float]]], {UUID(int=7): [{"x": math.nan}]}),
        (Blob, Blob(data=NOT_UTF_8, weight=math.nan)),
        (list[Blob], [Blob(data=NOT_UTF_8), Blob(data=b"", weight=-math.inf)]),
        (Hexed, Hexed(data=NOT_UTF_8)),
        (
            Nested,
            Nested(
                blob=Blob(data=NOT_UTF_8),
                blobs=[Blob(data=b"\xfe")],
                by_name={"x": Blob(data=b"\xfd")},
                either=Blob(data=b"\xfc"),
            ),
        ),
        (Tree, Tree(data=b"\xff", children=[Tree(data=b"\xfe", children=[Tree(data=b"\xfd")])])),
        (Box[bytes], Box[bytes](content=NOT_UTF_8)),
        (Box[Box[float]], Box[Box[float]](content=Box[float](content=math.inf))),
        (Numbers, Numbers([math.inf])),
        (
            Aliased,
            Aliased.model_validate(
                {"Plain": 1, "onlyRead": 2, "only_written": 3, "in": 4, "two": [5], "list": [0, 6]}
            ),
        ),
        (Camel, Camel(long_name=NOT_UTF_8)),
        (Computed, Computed(side=math.inf)),
        (Described, Described.model_validate(dict.fromkeys(Described.model_fields, NOT_UTF_8))),
        (Annotated[Cat | Dog, Field(discriminator="kind")], Dog(name=NOT_UTF_8)),
        (list[Cat | Dog], [Dog(name=NOT_UTF_8), Cat(name=b"\xff")]),
        (Data, Data(NOT_UTF_8, math.nan, Data(b"\xff", math.inf))),
        (Dict, {"data": NOT_UTF_8, "weight": math.inf}),
        (list[Dict], [{"data": NOT_UTF_8}]),
        (Pair, Pair(NOT_UTF_8, math.inf)),
        (dict[str, list[Pair]], {"x": [Pair(NOT_UTF_8)]}),
    ],
)
def test_what_is_sent_arrives(kind: Any, value: object) -> None:
    assert_round_trip(kind, value)


def test_bytes_are_base64_and_inf_and_nan_strings_also_within_models() -> None:
    codec = codec_of(list[Blob])
    workload = codec.encode(([Blob(data=b"\xfb\xff", weight=math.nan)],), {})
    assert workload == b'{"value":[{"data":"-_8=","weight":"NaN"}],"other":0}'


def test_both_alphabets_of_base64_are_read() -> None:
    codec = codec_of_sole(Blob)
    for text in ("-_8=", "+/8=", "-_8"):
        assert codec.decode(b'{"data":"%s"}' % text.encode()) == {"value": Blob(data=b"\xfb\xff")}


def test_the_models_own_json_stays_as_it_was() -> None:
    codec_of(Blob).encode((Blob(data=b"x"),), {})
    assert Blob(data=b"x").model_dump_json() == '{"data":"x","weight":null}'
    assert Blob.model_validate_json('{"data":"x"}') == Blob(data=b"x")


def test_aliases_are_what_is_written() -> None:
    codec = codec_of_sole(Camel)
    assert codec.encode((Camel(long_name=b""),), {}) == b'{"longName":""}'
    assert codec.decode(b'{"long_name":""}') == {"value": Camel(long_name=b"")}


def test_json_within_json_survives() -> None:
    codec = codec_of(Box[Json[list[int]]])
    workload = codec.encode((Box[Json[list[int]]](content="[1]"),), {})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert codec.decode(workload)["value"].content == [1]


def test_a_cycle_is_refused() -> None:
    tree = Tree(data=b"")
    tree.children.append(tree)
    with pytest.raises(PayloadInvalid):
        codec_of(Tree).encode((tree,), {})


def test_equal_values_have_equal_canonical_bytes_whatever_their_order() -> None:
    codec = codec_of(dict[str, set[str]])
    empty: set[str] = set()
    one = codec.canonical(({"a": {"x", "y", "z"}, "b": empty},), {})
    other = codec.canonical(({"b": empty, "a": {"z", "y", "x"}},), {})
    assert one == other
    assert one != codec.canonical(({"a": {"x", "y"}, "b": empty},), {})
    assert b'["x", "y", "z"]' in one


# ------------------------------------------------------------------------------------- for any values

scalars: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (float, st.floats(allow_nan=False)),
    (bool, st.booleans()),
    (bytes, st.binary()),
    (str, st.text()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (datetime, st.datetimes(timezones=st.just(UTC))),
    (date, st.dates()),
    (UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
    (Blob, st.builds(Blob, data=st.binary(), weight=st.floats(allow_nan=False))),
    (Data, st.builds(Data, st.binary(), st.floats(allow_nan=False))),
    (Pair, st.builds(Pair, st.binary(), st.floats(allow_nan=False))),
]

# Type checkers take what is subscribed for types, and these are made at run time.
any_list, any_dict, any_tuple, any_box = (cast(Any, kind) for kind in (list, dict, tuple, Box))


def boxed(value: Any) -> dict[str, Any]:
    return {"content": value}


wrappers: list[tuple[Callable[[Any], Any], Callable[[st.SearchStrategy[Any]], st.SearchStrategy[Any]]]] = [
    (lambda kind: kind, lambda values: values),
    (lambda kind: any_list[kind], lambda values: st.lists(values, max_size=3)),
    (lambda kind: kind | None, lambda values: values | st.none()),
    (lambda kind: any_dict[str, kind], lambda values: st.dictionaries(st.text(), values, max_size=3)),
    (lambda kind: any_tuple[kind, kind], lambda values: st.tuples(values, values)),
    (lambda kind: any_box[kind], lambda values: st.builds(boxed, values)),
]


@st.composite
def kinds_and_values(draw: st.DrawFn) -> tuple[Any, Any]:
    kind, values = draw(st.sampled_from(scalars))
    for _ in range(2):
        wrap_kind, wrap_values = draw(st.sampled_from(wrappers))
        kind, values = wrap_kind(kind), wrap_values(values)
    return kind, draw(values)


@given(kinds_and_values())
def test_decoding_undoes_encoding(kind_and_value: tuple[Any, Any]) -> None:
    kind, value = kind_and_value
    codec = codec_of(kind)
    workload = codec.encode((value,), {})
    decoded = codec.decode(workload)["value"]
    assert codec.encode((decoded,), {}) == workload
    result = codec.decode_result(codec.encode_result(value))
    assert result == decoded
    if "Box" not in str(kind):  # whose values are given as dicts
        assert decoded == value


@given(st.binary())
def test_no_bytes_do_more_than_not_fit(data: bytes) -> None:
    for kind in (Nested, Data, str):
        codec = codec_of(kind)
        for decode in (codec.decode, codec.decode_result):
            try:
                decode(data)
            except PayloadInvalid as error:
                assert error.errors  # noqa: PT017  (what is decoded without a fault is fine)
