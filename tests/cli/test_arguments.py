"""How arguments from a shell are read: by a task's types, or without them."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from gearflow.tasks import Context, task
from gearflow_cli import arguments
from gearflow_cli.errors import CliError, ExitCode

NIL = UUID(int=0)


class Color(Enum):
    RED = 1
    BLUE = "blue"


class Size(BaseModel):
    width: int
    height: int = 1


class Order(BaseModel):
    code: str
    lines: list[int] = []
    size: Size | None = None
    note: Annotated[str, Field(alias="remark")] = ""


@task
def anything(
    i: int = 0,
    s: str = "",
    f: float = 0.0,
    b: bool = False,
    d: Decimal = Decimal(0),
    t: datetime = datetime(2000, 1, 1, tzinfo=UTC),
    u: UUID = NIL,
    c: Color = Color.RED,
    xs: list[int] = [],  # noqa: B006  (never changed)
    size: Size = Size(width=0),  # noqa: B008  (never changed)
    o: str | None = None,
    n: int | None = None,
    either: int | str = 0,
    a: Any = None,
    data: bytes = b"",
    lit: Literal["1", "one"] = "one",
    tup: tuple[int, str] = (0, ""),
) -> None: ...


@task
def order(ctx: Context, order: Order) -> None: ...


@task
def text(text: str) -> None: ...


@task
def data(data: bytes) -> None: ...


@task
def greeting(text: str = "hello") -> None: ...


@task
def numbers(numbers: list[int]) -> None: ...


@task
def positional(a: int, /, b: int = 2) -> None: ...


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("i=3", 3),
        ("i=-3", -3),
        ("s=3", "3"),
        ("s=null", "null"),
        ('s="quoted"', '"quoted"'),
        ("s=", ""),
        ("s=a=b", "a=b"),
        ("s=ä 😀", "ä 😀"),
        ("f=1e3", 1000.0),
        ("b=yes", True),
        ("b=0", False),
        ("b=true", True),
        ("d=1.10", Decimal("1.10")),
        ("t=2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("u=00000000-0000-0000-0000-000000000007", UUID(int=7)),
        ("c=1", Color.RED),
        ("c=blue", Color.BLUE),
        ("xs=[1, 2]", [1, 2]),
        ('size={"width": 3}', Size(width=3)),
        ("o=null", None),
        ("o=5", "5"),
        ("o=true", "true"),
        ("o=x", "x"),
        ("n=null", None),
        ("n=5", 5),
        ("either=5", 5),
        ("either=five", "five"),
        ("a=5", 5),
        ("a=[1]", [1]),
        ("a=word", "word"),
        ("a=NaN", "NaN"),
        ("data=hello", b"hello"),
        ("lit=1", "1"),
        ('tup=[1, "x"]', (1, "x")),
    ],
)
def test_a_value_is_read_by_the_type_of_its_parameter(argument: str, value: object) -> None:
    _, values = arguments.typed([argument], anything)
    assert values[argument.partition("=")[0]] == value


def test_nan_and_infinity_are_floats_where_a_float_is_wanted() -> None:
    _, values = arguments.typed(["f=inf"], anything)
    assert values["f"] == float("inf")


def test_several_values_are_read_each_by_its_own_type() -> None:
    _, values = arguments.typed(["i=1", "s=1", "xs=[1]", "a=1"], anything)
    assert (values["i"], values["s"], values["xs"], values["a"]) == (1, "1", [1], 1)


def test_the_keys_of_a_sole_model_are_its_fields() -> None:
    _, values = arguments.typed(["code=7", "lines=[1]", 'size={"width": 2}', "remark=5"], order)
    assert values == {
        "order": Order.model_validate({"code": "7", "lines": [1], "size": {"width": 2}, "remark": "5"})
    }


def test_one_argument_is_the_text_of_a_task_that_takes_one_text() -> None:
    assert arguments.typed(["3"], text) == ((), {"text": "3"})
    assert arguments.typed(["a=b"], text) == ((), {"text": "a=b"})
    assert arguments.typed(["text=a=b"], text) == ((), {"text": "a=b"})
    assert arguments.typed(['{"a": 1}'], text) == ((), {"text": '{"a": 1}'})
    assert arguments.typed(["hello"], data) == ((), {"data": b"hello"})


@pytest.mark.parametrize("sole", [text, data], ids=lambda sole: sole.name)
def test_a_task_that_takes_one_text_gets_no_json_in_its_place(sole: Any) -> None:
    ((name, _),) = sole.payload.signature.annotations.items()
    for given, said in [
        ([], [f"{name}: is missing"]),
        ([f"{name}=a", "foo=b"], [f"foo: there is no such parameter; there are {name}"]),
        (["foo=a", "bar=b"], [f"{name}: is missing", "foo: there is no", "bar: there is no"]),
    ]:
        with pytest.raises(CliError) as caught:
            arguments.typed(given, sole)
        assert caught.value.code is ExitCode.PAYLOAD_INVALID
        _, *faults = caught.value.message.splitlines()
        assert [fault.strip()[: len(start)] for fault, start in zip(faults, said, strict=True)] == said


def test_without_an_argument_a_text_is_its_default() -> None:
    assert arguments.typed([], greeting) == ((), {"text": "hello"})


def test_a_payload_may_be_given_as_json() -> None:
    assert arguments.typed(['{"numbers": [1, 2]}'], numbers) == ((), {"numbers": [1, 2]})
    assert arguments.typed(['{"code": "x=y"}'], order) == ((), {"order": Order(code="x=y")})


def test_a_payload_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "payload"
    file.write_bytes(b'{"numbers": [3]}\n')
    assert arguments.typed([f"@{file}"], numbers) == ((), {"numbers": [3]})
    assert arguments.typed([f"@{file}"], data) == ((), {"data": b'{"numbers": [3]}\n'})


def test_positional_only_parameters_are_given_by_position() -> None:
    assert arguments.typed(["b=4", "a=3"], positional) == ((3,), {"b": 4})


def test_every_fault_is_told_with_its_parameter() -> None:
    with pytest.raises(CliError) as caught:
        arguments.typed(["xs=[1, true, null]", "i=x", "nope=1"], anything)
    assert caught.value.code is ExitCode.PAYLOAD_INVALID
    lines = caught.value.message.splitlines()
    assert any(line.strip().startswith("xs.2:") for line in lines)
    assert any(line.strip().startswith("i:") and '"x"' in line for line in lines)
    assert any(
        line.strip().startswith("nope: there is no such parameter; there are i, s, f") for line in lines
    )


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(CliError, match=r"numbers: is missing") as caught:
        arguments.typed([], numbers)
    assert caught.value.code is ExitCode.PAYLOAD_INVALID


def test_broken_json_is_told_as_such() -> None:
    with pytest.raises(CliError, match="the payload is not JSON") as caught:
        arguments.typed(['{"numbers": [1'], numbers)
    assert caught.value.code is ExitCode.PAYLOAD_INVALID


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["three"], "takes (numbers: list[int])"),
        (["a=1", "2"], "'2' is not key=value"),
        (["=1", "a=1"], "'=1' is not key=value"),
        (["a=1", "a=2"], "'a' is given twice"),
        (["@/no/such/file"], "cannot read /no/such/file: No such file or directory"),
    ],
)
def test_what_is_no_argument_is_refused_as_usage(given: list[str], said: str) -> None:
    with pytest.raises(CliError) as caught:
        arguments.typed(given, numbers)
    assert caught.value.code is ExitCode.USAGE
    assert said in caught.value.message


def test_a_bare_value_is_the_only_parameter() -> None:
    assert arguments.typed(["[3]"], numbers) == ((), {"numbers": [3]})
    with pytest.raises(CliError) as caught:
        arguments.typed(["3"], numbers)
    assert caught.value.code is ExitCode.PAYLOAD_INVALID
    assert "numbers: Input should be a valid array, not 3" in caught.value.message


def test_without_types_values_are_json_if_they_can_be() -> None:
    given = ["a=1", "b=x", 'c="1"', "d=[1,null]", "e=NaN", "f="]
    assert json.loads(arguments.untyped(given)) == {
        "a": 1,
        "b": "x",
        "c": "1",
        "d": [1, None],
        "e": "NaN",
        "f": "",
    }


@pytest.mark.parametrize("payload", ['{"a": "x=y"}', "[1, 2]", "3", '"a=b"', "null"])
def test_without_types_json_goes_as_it_is(payload: str) -> None:
    assert arguments.untyped([payload]) == payload.encode()


def test_numbers_keep_all_their_digits() -> None:
    assert arguments.untyped(["a=1.10", "b=1e400"]) == b'{"a": 1.10, "b": 1e400}'


def test_bytes_that_are_no_text_are_refused_as_usage() -> None:
    with pytest.raises(CliError, match="is not UTF-8; other bytes can be sent with --raw"):
        arguments.untyped(["a=\udcff"])
    assert arguments.raw(["\udcff"]) == b"\xff"


def test_without_types_and_arguments_the_payload_is_an_empty_object() -> None:
    assert arguments.untyped([]) == b"{}"


def test_without_types_a_bare_word_is_refused_and_raw_is_offered() -> None:
    with pytest.raises(CliError, match="--raw sends it as it is"):
        arguments.untyped(["hello"])


def test_raw_takes_one_argument_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "payload"
    file.write_bytes(b"\0\xff")
    assert arguments.raw([]) == b""
    assert arguments.raw(["a=1"]) == b"a=1"
    assert arguments.raw([f"@{file}"]) == b"\0\xff"
    with pytest.raises(CliError, match="--raw takes one argument, not 2"):
        arguments.raw(["a", "b"])
