"""How children have ended, and what is known of their memory."""

import os
import signal
import subprocess

import pytest

from gearflow.runtime.process import ProcessEnd, await_end, peak, reap


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -TERM $$", -signal.SIGTERM)])
def test_a_child_is_waited_for(script: str, status: int) -> None:
    floor = peak()
    child = subprocess.Popen(["sh", "-c", script])
    end = reap(child.pid, floor)
    child.returncode = status  # it is no more, which Popen cannot know
    assert end.status == status
    assert end.peak > 0
    assert end.memory.endswith(" MiB at most")  # a shell has less than the process that starts it


def test_a_child_that_has_ended_keeps_its_number_until_it_is_reaped() -> None:
    child = subprocess.Popen(["true"])
    await_end(child.pid)
    os.kill(child.pid, signal.SIGKILL)  # nobody else's
    assert reap(child.pid, 0).status == 0
    child.returncode = 0
    await_end(child.pid)  # of one that is no more there is no end to wait for


def test_of_a_child_that_somebody_else_has_waited_for_nothing_is_known() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert reap(child.pid, 0) == ProcessEnd(None)


def test_signals_have_names_if_they_have_any() -> None:
    statuses = [None, 0, 9, -9, -45]
    assert [ProcessEnd(status).signal for status in statuses] == [None, None, None, "SIGKILL", "signal 45"]


def test_memory_is_told_as_far_as_it_is_known() -> None:
    assert ProcessEnd(0, peak=300 << 20, floor=50 << 20).memory == "300 MiB"
    assert ProcessEnd(0, peak=50 << 20, floor=50 << 20).memory == "50 MiB at most"
