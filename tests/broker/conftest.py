"""A broker with a client, for each test. Every change of a job's state is held against the table."""

from types import MemberDescriptorType

import pytest

from gearflow.broker import JobState, QueuedJob
from gearflow.broker.job import TRANSITIONS
from tests.broker.harness import Durable, Peer, World


@pytest.fixture(autouse=True)
def only_transitions_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is compiled cannot be watched so closely."""
    slot = vars(QueuedJob)["state"]
    if not isinstance(slot, MemberDescriptorType):
        return

    def get(job: QueuedJob) -> JobState:
        state = slot.__get__(job)
        assert isinstance(state, JobState)
        return state

    def enter(job: QueuedJob, state: JobState) -> None:
        before = get(job) if hasattr(job, "worker") else state  # a job is made in any state
        is_new = before is JobState.WAITING and job not in job.function.lanes[job.priority]
        assert state is before or is_new or state in TRANSITIONS[before], (before, state)
        slot.__set__(job, state)

    monkeypatch.setattr(QueuedJob, "state", property(get, enter))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Peer:
    return world.peer("client")


@pytest.fixture(params=["local", "delayed"])
def ports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with a store that answers at once, and once with one that answers later."""
    monkeypatch.setattr(Durable, "delayed", request.param == "delayed")
