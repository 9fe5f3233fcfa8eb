"""What a call looks like on the wire, and what is refused on either end."""

import dataclasses
import functools
import sys
import typing
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    field_serializer,
)
from typing_extensions import TypedDict

from gearflow.errors import PayloadInvalid, TaskDefinitionError
from gearflow.tasks.context import Context
from gearflow.tasks.payload import PayloadCodec
from gearflow.tasks.signature import TaskSignature


def codec_of(function: Callable[..., Any]) -> PayloadCodec:
    return PayloadCodec(TaskSignature(function, "app.do"), "app.do")


class Picture(BaseModel):
    url: str
    width: int = 640


class Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")
    url: str


class Numbers(RootModel[list[int]]):
    pass


class Upload(BaseModel):
    data: bytes


class Hexed(BaseModel):
    model_config = ConfigDict(val_json_bytes="hex", ser_json_bytes="hex")
    data: bytes


class Login(BaseModel):
    password: SecretStr


class Opened(BaseModel):
    password: SecretStr

    @field_serializer("password", when_used="json")
    def plain(self, password: SecretStr) -> str:
        return password.get_secret_value()


def reveal(secret: SecretStr) -> str:
    return secret.get_secret_value()


class Partly(BaseModel):
    number: int
    inner: int = Field(default=0, exclude=True)


@dataclasses.dataclass
class PartlyData:
    inner: Annotated[int, Field(exclude=True)] = 0


class PartlyDict(TypedDict):
    inner: Annotated[int, Field(exclude=True)]


class OldDict(typing.TypedDict):  # which pydantic takes from Python 3.12 on
    a: int


class Plain:
    pass


# ------------------------------------------------------------------------------------------- the forms


def test_a_sole_str_is_the_workload_itself_in_utf_8() -> None:
    def do(text: str) -> None: ...

    codec = codec_of(do)
    assert codec.encode(("grüße",), {}) == "grüße".encode()
    assert codec.decode(b"\xc3\xbc") == {"text": "ü"}


def test_a_sole_bytes_is_the_workload_itself() -> None:
    def do(data: bytes) -> None: ...

    codec = codec_of(do)
    assert codec.encode((b"\0\xff",), {}) == b"\0\xff"
    assert codec.decode(b"\0\xff\0") == {"data": b"\0\xff\0"}


def test_raw_has_a_default_too_and_the_context_does_not_count() -> None:
    def do(ctx: Context, text: str = "nothing") -> None: ...

    codec = codec_of(do)
    assert codec.encode((), {}) == b"nothing"
    assert codec.decode(b"") == {"text": ""}


@pytest.mark.parametrize(
    "kind", [str | None, str | bytes, Annotated[str, Field(max_length=9)], int, list[str], Numbers]
)
def test_whatever_is_not_exactly_str_or_bytes_goes_by_name(kind: Any) -> None:
    def do(value: Any) -> None: ...

    do.__annotations__["value"] = kind
    value: Any = [7] if kind is Numbers else ["7"] if kind == list[str] else "7"
    data = codec_of(do).encode((value,), {})
    assert data.startswith(b'{"value":')


def test_one_model_is_its_own_object() -> None:
    def do(picture: Picture) -> None: ...

    codec = codec_of(do)
    assert codec.encode((Picture(url="x"),), {}) == b'{"url":"x","width":640}'
    assert codec.decode(b'{"url":"x"}') == {"picture": Picture(url="x")}


def test_several_parameters_are_an_object_with_defaults_filled_in() -> None:
    def do(url: str, width: int = 640, *, fast: bool = False) -> None: ...

    codec = codec_of(do)
    assert codec.encode(("x",), {"fast": True}) == b'{"url":"x","width":640,"fast":true}'
    assert codec.encode((), {"width": 1, "url": "x"}) == b'{"url":"x","width":1,"fast":false}'


def test_a_model_beside_another_parameter_goes_by_name() -> None:
    def do(picture: Picture, fast: bool = True) -> None: ...

    assert codec_of(do).encode((Picture(url="x"),), {}) == b'{"picture":{"url":"x","width":640},"fast":true}'


def test_without_parameters_an_empty_payload_is_accepted() -> None:
    def do() -> None: ...

    codec = codec_of(do)
    assert codec.encode((), {}) == b"{}"
    for payload in (b"", b"\0", b"{}", b"{}\0"):
        assert codec.decode(payload) == {}
    with pytest.raises(PayloadInvalid):
        codec.decode(b'{"a":1}')
    with pytest.raises(PayloadInvalid):
        codec.decode(b"null")


def test_what_the_payload_leaves_out_is_left_to_the_functions_defaults() -> None:
    def do(url: str, width: int = 640) -> str:
        return f"{url} {width}"

    codec = codec_of(do)
    arguments = codec.decode(b'{"url":"x"}')
    assert arguments == {"url": "x"}
    assert codec.signature.apply(arguments) == "x 640"


def test_positional_only_and_keyword_only_parameters_are_called_as_they_must_be() -> None:
    def do(first: int, second: int = 2, /, third: int = 3, *, fourth: int) -> list[int]:
        return [first, second, third, fourth]

    codec = codec_of(do)
    workload = codec.encode((1,), {"fourth": 4})
    assert workload == b'{"first":1,"second":2,"third":3,"fourth":4}'
    assert codec.signature.apply(codec.decode(workload)) == [1, 2, 3, 4]
    assert codec.signature.apply(codec.decode(b'{"first":7,"fourth":4}')) == [7, 2, 3, 4]


def test_parameters_may_be_named_like_anything() -> None:
    def do(
        model_config: int,
        json: str,
        _x: int,
        schema: int,
        fields: int,
        type: int,  # noqa: A002
        self_: int,
        items: int,
    ) -> None: ...

    codec = codec_of(do)
    values = dict.fromkeys(("model_config", "json", "_x", "schema", "fields", "type", "self_", "items"), 1)
    given: dict[str, Any] = {**values, "json": "j"}
    assert codec.decode(codec.encode((), given)) == given


def test_an_alias_on_a_parameter_does_not_change_its_name_on_the_wire() -> None:
    def do(a: Annotated[int, Field(alias="b", gt=0)]) -> None: ...

    codec = codec_of(do)
    assert codec.encode((3,), {}) == b'{"a":3}'
    assert codec.decode(b'{"a":3}') == {"a": 3}


@pytest.mark.parametrize(
    ("kind", "bare", "value"),
    [
        (int, b"3", 3),
        (int, b" 3\n", 3),
        (int, b"3\0", 3),
        (int | None, b"null", None),
        (list[int], b"[1, 2]", [1, 2]),
        (str | None, b'"x"', "x"),
        (float, b"1e3", 1000.0),
        (bool, b"true", True),
        (bytes | None, b'"eA=="', b"x"),
        (Numbers, b"[1]", Numbers([1])),
        (Any, b'"{}"', "{}"),
    ],
)
def test_a_bare_value_that_is_no_object_is_the_only_argument(kind: Any, bare: bytes, value: Any) -> None:
    def do(a: Any) -> None: ...

    do.__annotations__["a"] = kind
    assert codec_of(do).decode(bare) == {"a": value}


def test_an_object_is_always_by_parameter_name() -> None:
    def do(a: dict[str, int]) -> None: ...

    assert codec_of(do).decode(b' {"a": {"a": 1}}') == {"a": {"a": 1}}
    with pytest.raises(PayloadInvalid):
        codec_of(do).decode(b'{"a": 1}')


def test_a_bare_value_is_one_value_and_is_for_one_parameter() -> None:
    def one(ctx: Context, a: int = 2) -> None: ...

    def two(a: int, b: int = 2) -> None: ...

    assert codec_of(one).decode(b"3") == {"a": 3}
    assert codec_of(one).decode(b"{}") == {}
    for several in (b'1, "a": 2', b'1}{"a": 2', b"1 2"):
        with pytest.raises(PayloadInvalid):
            codec_of(one).decode(several)
    with pytest.raises(PayloadInvalid, match="a: Input should be a valid integer"):
        codec_of(one).decode(b'"x"')
    with pytest.raises(PayloadInvalid):
        codec_of(two).decode(b"3")


def test_one_trailing_nul_is_dropped_before_json_and_never_from_raw() -> None:
    def by_name(a: int) -> int:
        raise NotImplementedError

    def raw(a: str) -> str:
        raise NotImplementedError

    assert codec_of(by_name).decode(b'{"a":1}\0') == {"a": 1}
    assert codec_of(by_name).decode_result(b"1\0") == 1
    assert codec_of(raw).decode(b"x\0") == {"a": "x\0"}
    assert codec_of(raw).decode_result(b"x\0") == "x\0"
    with pytest.raises(PayloadInvalid):
        codec_of(by_name).decode(b'{"a":1}\0\0')


# ------------------------------------------------------------------------------------------- results


def test_results_are_raw_only_if_exactly_str_or_bytes() -> None:
    def text() -> str:
        raise NotImplementedError

    def data() -> bytes:
        raise NotImplementedError

    def maybe() -> str | None:
        raise NotImplementedError

    assert codec_of(text).encode_result("ü") == "ü".encode()
    assert codec_of(data).encode_result(b"\xff") == b"\xff"
    assert codec_of(maybe).encode_result("x") == b'"x"'


def test_no_result_is_null() -> None:
    def do() -> None: ...

    codec = codec_of(do)
    assert codec.encode_result(None) == b"null"
    assert codec.decode_result(b"null") is None


def test_a_result_that_does_not_fit_is_found_where_it_was_made() -> None:
    def do() -> int:
        raise NotImplementedError

    with pytest.raises(PayloadInvalid, match="what it returned"):
        codec_of(do).encode_result("many")
    with pytest.raises(PayloadInvalid, match="the result"):
        codec_of(do).decode_result(b'"many"')


# ---------------------------------------------------------------------------------------- bad payloads


def test_unknown_keys_are_refused() -> None:
    def by_name(a: int) -> None: ...
    def model(picture: Picture) -> None: ...

    for function, payload in ((by_name, b'{"a":1,"b":2}'), (model, b'{"url":"x","height":1}')):
        with pytest.raises(PayloadInvalid) as caught:
            codec_of(function).decode(payload)
        assert caught.value.errors[0]["type"] == "extra_forbidden"


def test_a_model_that_says_what_it_does_with_unknown_keys_is_heard() -> None:
    def do(lenient: Lenient) -> None: ...

    assert codec_of(do).decode(b'{"url":"x","height":1}') == {"lenient": Lenient(url="x")}


def test_faults_come_as_pydantics_list_and_name_the_task() -> None:
    def do(a: int, b: int) -> None: ...

    with pytest.raises(PayloadInvalid, match=r"app\.do.*a: Input should be.*b: Input should be") as caught:
        codec_of(do).encode(("x", "y"), {})
    assert [(error["type"], error["loc"]) for error in caught.value.errors] == [
        ("int_parsing", ["a"]),
        ("int_parsing", ["b"]),
    ]


def test_only_the_first_faults_are_in_the_message_and_all_in_the_list() -> None:
    def do(a: list[int]) -> None: ...

    with pytest.raises(PayloadInvalid, match="and 7 more") as caught:
        codec_of(do).encode((["x"] * 10,), {})
    assert len(caught.value.errors) == 10


@pytest.mark.parametrize("value", [object(), b"\xff\xfe", "x" * 100_000, {1: object()}])
def test_a_faulty_input_that_is_long_or_no_json_is_left_out(value: object) -> None:
    def do(a: int) -> None: ...

    with pytest.raises(PayloadInvalid) as caught:
        codec_of(do).encode((value,), {})
    assert len(str(caught.value.errors)) < 2000


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"a":"x"}', b'{"a":null}', b"{}"])
def test_garbage_at_the_worker_is_a_payload_that_does_not_fit(payload: bytes) -> None:
    def do(a: int) -> None: ...

    with pytest.raises(PayloadInvalid) as caught:
        codec_of(do).decode(payload)
    assert caught.value.errors


def test_raw_text_that_is_not_utf_8_does_not_fit() -> None:
    def do(text: str) -> str:
        raise NotImplementedError

    with pytest.raises(PayloadInvalid, match="utf-8"):
        codec_of(do).decode(b"\xff")
    with pytest.raises(PayloadInvalid):
        codec_of(do).encode(("\ud800",), {})
    with pytest.raises(PayloadInvalid):
        codec_of(do).encode((3,), {})


def with_text_for_bytes(text: str) -> list[tuple[Any, Any]]:
    return [
        (bytes, text),
        (bytes | None, text),
        (bytes | int, text),
        (list[bytes], [text]),
        (dict[bytes, int], {text: 1}),
        (Upload, {"data": text}),
        (list[Upload], [{"data": text}]),
        (Hexed, {"data": text}),
    ]


@pytest.mark.parametrize(
    ("kind", "value"), [*with_text_for_bytes("deadbeef"), *with_text_for_bytes("no base64")]
)
def test_a_str_for_bytes_is_refused_and_never_decoded(kind: Any, value: Any) -> None:
    def sole(value: Any) -> Any: ...
    def beside(value: Any, other: int = 0) -> Any: ...

    functions: list[Callable[..., Any]] = [sole, beside]
    for function in functions:
        function.__annotations__.update({"value": kind, "return": kind})
        codec = codec_of(function)
        with pytest.raises(PayloadInvalid, match="should be bytes, and is a str; encode it"):
            codec.encode((value,), {})
        with pytest.raises(PayloadInvalid, match="should be bytes, and is a str; encode it"):
            codec.encode_result(value)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_what_is_almost_bytes_is_told_how_to_become_them(kind: Callable[[bytes], Any]) -> None:
    def do() -> bytes:
        raise NotImplementedError

    with pytest.raises(PayloadInvalid, match=r"and is a (bytearray|memoryview); write bytes\(\.\.\.\)"):
        codec_of(do).encode_result(kind(b"x"))


def test_bytes_beside_text_stay_what_they_are() -> None:
    def do(either: str | bytes, data: bytes) -> None: ...

    codec = codec_of(do)
    assert codec.encode(("deadbeef", b"x"), {}) == b'{"either":"deadbeef","data":"eA=="}'
    assert codec.decode(b'{"either":"deadbeef","data":"eA=="}') == {"either": "deadbeef", "data": b"x"}


def test_a_validator_before_the_bytes_sees_the_text_of_the_wire() -> None:
    def same(value: object) -> object:
        return value

    def do(data: Annotated[bytes, BeforeValidator(same)], other: int = 0) -> None: ...

    codec = codec_of(do)
    assert codec.decode(codec.encode((b"x",), {})) == {"data": b"x", "other": 0}


def test_a_default_that_is_a_str_for_bytes_does_not_fit() -> None:
    def do(data: bytes = "deadbeef") -> None: ...  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]

    with pytest.raises(TaskDefinitionError, match="'data' does not fit bytes"):
        codec_of(do).check()


def test_a_model_changed_into_something_invalid_is_found_at_the_producer() -> None:
    def do(picture: Picture) -> None: ...

    picture = Picture(url="x")
    picture.width = "wide"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(PayloadInvalid):
        codec_of(do).encode((picture,), {})
    with pytest.raises(PayloadInvalid):
        codec_of(do).encode((Picture.model_construct(width=3),), {})


# ------------------------------------------------------------------------------------------ wrong calls


def do_several(a: int, b: int = 2, /, c: int = 3, *, d: int = 4) -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1, 2, 3, 4), {}),
        ((1,), {"a": 1}),
        ((1, 2, 3), {"c": 3}),
        ((1,), {"e": 5}),
        ((1,), {"b": 2}),
    ],
)
def test_a_call_that_python_would_refuse_raises_its_type_error(
    args: tuple[int, ...], kwargs: dict[str, int]
) -> None:
    with pytest.raises(TypeError):
        do_several(*args, **kwargs)
    with pytest.raises(TypeError, match=r"app\.do"):
        codec_of(do_several).encode(args, kwargs)


# ------------------------------------------------------------------------------------------ definitions


def several(*urls: str) -> None: ...
def keywords(**urls: str) -> None: ...


def test_parameters_without_names_or_types_are_refused_with_the_remedy() -> None:
    def bare(url: str) -> None: ...
    def resultless(url: str) -> None: ...
    def method(self: Any, url: str) -> None: ...

    for function, name in ((bare, "url"), (resultless, "return"), (method, "self")):
        del function.__annotations__[name]
    functions: list[tuple[Callable[..., None], str]] = [
        (several, r"urls: list\["),
        (keywords, r"urls: dict\["),
        (bare, "url: TYPE"),
        (resultless, "-> None"),
        (method, "take @task off"),
    ]
    for refused, remedy in functions:
        with pytest.raises(TaskDefinitionError, match=remedy):
            codec_of(refused)


def test_a_default_that_does_not_fit_its_type_is_refused_at_first_use() -> None:
    def do(url: str, width: int = None) -> None: ...  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]  # noqa: RUF013

    codec = codec_of(do)
    with pytest.raises(TaskDefinitionError, match=r"width: int \| None = None"):
        codec.encode(("x",), {})
    with pytest.raises(TaskDefinitionError):
        codec.decode(b'{"url":"x"}')


def test_a_raw_parameters_default_has_to_fit_as_well() -> None:
    def do(url: str = None) -> None: ...  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]  # noqa: RUF013

    with pytest.raises(TaskDefinitionError):
        codec_of(do).decode(b"x")


def test_a_type_that_cannot_travel_is_refused_with_the_remedy() -> None:
    def one(lock: Plain) -> None: ...
    def second(a: int, lock: list[Plain]) -> None: ...
    def result() -> Plain: ...  # type: ignore[empty-body]

    functions: list[Callable[..., Any]] = [one, second, result]
    for function, what in zip(
        functions, ("the parameter 'lock'", "the parameter 'lock'", "the result"), strict=True
    ):
        with pytest.raises(
            TaskDefinitionError, match=f"app.do.*{what} .*Plain.*a pydantic model, a dataclass"
        ) as caught:
            codec_of(function).check()
        assert "arbitrary_types_allowed" not in str(caught.value)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="it travels from Python 3.12 on")
def test_a_typed_dict_of_python_3_11_is_told_where_to_come_from() -> None:
    def do(a: int, options: OldDict) -> None: ...

    with pytest.raises(TaskDefinitionError, match=r"'options' .*take TypedDict from typing_extensions"):
        codec_of(do).check()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (SecretStr, "it is a secret"),
        (SecretBytes, "it is a secret"),
        (Secret[int], "it is a secret"),
        (list[SecretStr | None], "it is a secret"),
        (Login, r"Login\.password is a secret"),
        (dict[str, list[Login]], r"Login\.password is a secret"),
        (Partly, r"Partly\.inner has exclude=True"),
        (list[Partly] | None, r"Partly\.inner has exclude=True"),
        (PartlyData, r"PartlyData\.inner has exclude=True"),
        (PartlyDict, r"PartlyDict\.inner has exclude=True"),
    ],
)
def test_what_would_not_arrive_is_refused_with_its_type(kind: Any, said: str) -> None:
    def sole(value: Any) -> None: ...
    def beside(value: Any, other: int = 0) -> None: ...
    def result() -> Any: ...

    for function, name in ((sole, "value"), (beside, "value"), (result, "return")):
        function.__annotations__[name] = kind
        what = "the result" if name == "return" else "the parameter 'value'"
        with pytest.raises(TaskDefinitionError, match=f"{what} would not arrive as it is: {said}"):
            codec_of(function).check()


def test_a_secret_with_a_serializer_of_its_own_travels() -> None:
    def do(login: Opened, pin: Annotated[SecretStr, PlainSerializer(reveal)]) -> None: ...

    codec = codec_of(do)
    workload = codec.encode((Opened(password=SecretStr("x")), SecretStr("y")), {})
    assert workload == b'{"login":{"password":"x"},"pin":"y"}'
    assert codec.decode(workload) == {"login": Opened(password=SecretStr("x")), "pin": SecretStr("y")}


def test_a_name_that_is_never_defined_is_named() -> None:
    def do(a: Any) -> None: ...

    do.__annotations__["a"] = "Nowhere"
    with pytest.raises(TaskDefinitionError, match=r"'Nowhere'.*top level"):
        codec_of(do).encode((1,), {})


def later(a: "Later") -> "list[Later]":
    raise NotImplementedError


class Later(BaseModel):
    x: int


def test_a_model_may_be_defined_below_its_task() -> None:
    assert codec_of(later).encode((Later(x=1),), {}) == b'{"x":1}'
    assert codec_of(later).encode_result([Later(x=1)]) == b'[{"x":1}]'


def test_the_context_is_the_first_parameter_or_none() -> None:
    def first(ctx: Context, a: int) -> None: ...
    def quoted(ctx: "Context", a: int) -> None: ...
    def second(a: int, ctx: Context) -> None: ...
    def keyword(*, ctx: Context) -> None: ...

    for function in (first, quoted):
        codec = codec_of(function)
        assert codec.signature.takes_context
        assert codec.encode((1,), {}) == b'{"a":1}'
        with pytest.raises(TypeError):
            codec.encode((), {"ctx": None, "a": 1})
    misplaced: list[Callable[..., None]] = [second, keyword]
    for refused in misplaced:
        with pytest.raises(TaskDefinitionError, match="first parameter"):
            codec_of(refused).encode((1,), {})


def test_a_context_that_may_be_none_is_told_how_to_be_annotated() -> None:
    def either(ctx: Context | None, a: int) -> None: ...
    def annotated(ctx: Annotated[Context, "the run"], a: int) -> None: ...

    for function in (either, annotated):
        with pytest.raises(TaskDefinitionError, match="annotate 'ctx' as 'Context' alone"):
            codec_of(function).check()


def test_a_wrapped_function_has_the_signature_of_the_one_inside() -> None:
    def inside(a: int, b: int = 2) -> int:
        raise NotImplementedError

    @functools.wraps(inside)
    def outside(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    assert codec_of(outside).encode((1,), {}) == b'{"a":1,"b":2}'


def test_one_item_is_enough_for_a_call_or_what_is_missing_is_named() -> None:
    def enough(a: int, b: int = 2, *, c: int = 3) -> None: ...
    def several(a: int, b: int) -> None: ...
    def nothing() -> None: ...
    def keyword(a: int = 1, *, b: int) -> None: ...

    codec_of(enough).signature.check_takes_one()
    refused: list[tuple[Callable[..., None], str]] = [
        (several, "'a', 'b'"),
        (nothing, "nothing"),
        (keyword, "'b'"),
    ]
    for function, wanted in refused:
        with pytest.raises(TypeError, match=rf"wants {wanted}, .*def f\(p: tuple\[int, int\]\)"):
            codec_of(function).signature.check_takes_one()


# ------------------------------------------------------------------------------------------- JSON Schema


def test_the_schema_shows_names_defaults_and_that_nothing_else_is_taken() -> None:
    def do(picture: Picture, data: bytes = b"") -> list[int]:
        raise NotImplementedError

    schema = codec_of(do).json_schema()
    payload = schema["payload"]
    assert payload["additionalProperties"] is False
    assert payload["required"] == ["picture"]
    assert payload["properties"]["data"]["format"] == "base64url"
    assert schema["result"] == {"items": {"type": "integer"}, "type": "array"}


def test_the_schema_of_raw_is_a_string_of_its_media_type() -> None:
    def do(data: bytes) -> str:
        raise NotImplementedError

    assert codec_of(do).json_schema() == {
        "payload": {"type": "string", "contentMediaType": "application/octet-stream"},
        "result": {"type": "string", "contentMediaType": "text/plain; charset=utf-8"},
    }
