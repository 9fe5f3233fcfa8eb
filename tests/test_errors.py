import copy
import pickle

import pytest

from gearflow.errors import (
    GearflowError,
    NoServer,
    PayloadInvalid,
    QueueFull,
    ServerError,
    StreamGap,
    StreamRestarted,
    SubmitUnknown,
    TaskTimeout,
)


@pytest.mark.parametrize(
    "error",
    [
        NoServer({"a:1": "connection refused"}),
        NoServer({"a:1": "connection refused"}, "look elsewhere"),
        ServerError("UNKNOWN_OPTION", "no such option"),
        QueueFull("QUEUE_ERROR", "Job queue is full"),
        PayloadInvalid("it does not fit", [{"loc": ("a",), "msg": "missing", "type": "missing"}]),
        TaskTimeout("late", handle="H:1"),
        SubmitUnknown("sent to a:1"),
        StreamGap(9, 4),
        StreamRestarted(2, "its worker died"),
    ],
)
def test_an_error_survives_a_pool_of_processes(error: GearflowError) -> None:
    pickled: GearflowError = pickle.loads(pickle.dumps(error))
    for same in (copy.copy(error), pickled):
        assert type(same) is type(error)
        assert str(same) == str(error)
        assert vars(same) == vars(error)


@pytest.mark.parametrize(
    ("reasons", "asks"),
    [
        (["connection refused"], True),
        (["connection refused", "connection refused"], True),
        (["it does not accept our token"], False),
        (["connection refused", "its certificate is not trusted"], False),
    ],
)
def test_whether_a_server_runs_is_asked_only_where_none_has_answered(reasons: list[str], asks: bool) -> None:
    error = NoServer({f"server:{number}": reason for number, reason in enumerate(reasons)})
    assert ("start one with 'gearflow server'" in str(error)) is asks
