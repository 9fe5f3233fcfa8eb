"""Each example runs as its user would run it, ends by itself, and prints what it says it does."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, missing
from tests.postgres.cluster import NoPostgres, find_bindir

PATIENCE = 60.0  # seconds


def run(*arguments: str) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hello_gets_its_results_from_the_worker() -> None:
    assert run("examples/hello.py") == "3\n[2, 3, 4]\n"


def test_batches_give_each_caller_its_own_result() -> None:
    assert run("examples/batches.py").splitlines() == [
        "one: [5.0, 532.0]",
        "many: 250",
        "none: there is no text",
        "called a few times",
    ]


def test_failures_arrive_as_what_they_are() -> None:
    lines = run("examples/failures.py").splitlines()
    assert lines == [
        "three pears: 90",
        "not sent: ['number'] Input should be a valid integer, unable to parse string as an integer",
        "on the worker: KeyError(\"'plum'\")",
        "also a TaskFailed: True",
        "stopped there: task 'failures.ripen' overran its timeout of 0.1 s; it was cancelled",
        "waited too long; the job runs on, and can be waited for again: ripe",
        "nobody there: NoServer",
    ]


def test_background_jobs_run_by_priority_once_and_when_their_time_has_come() -> None:
    assert run("examples/background.py").splitlines() == [
        "May twice, one job: True",
        "April is waiting: JobStatus(known=True, running=False, numerator=0, denominator=0, state='waiting')",
        "remember: the house is on fire",
        "the report for April",
        "the report for May",
        "remember: the milk",
    ]


def test_the_server_makes_jobs_by_the_clock() -> None:
    assert run("examples/schedules.py").splitlines() == [
        "Oslo has its report each second",
        "2 mornings that have passed:",
        "Paris: the report of 2026-03-28 08:00:00+01:00",
        "Paris: the report of 2026-03-29 08:00:00+02:00",
    ]


def test_a_job_and_its_result_outlive_their_servers() -> None:
    assert run("examples/durable.py").splitlines() == [
        "the first server has accepted a job",
        "the second has found 1",
        "its result: 7",
        "the third has found 0",
        "the result is still there: 7",
    ]


def test_a_worker_opens_what_its_tasks_share_and_wraps_each_run() -> None:
    assert run("examples/lifespan.py").splitlines() == [
        "the books are opened",
        "lifespan.price, attempt 1: done",
        "three pears: 90",
        "lifespan.price, attempt 1: there is no 'rock'",
        "no rocks today",
        "the books are closed",
    ]


def test_jobs_run_within_limits_that_an_operator_changes() -> None:
    function = "limits.sync:concurrency, limits.sync:concurrency:/customer by /customer, shopify"
    assert run("examples/limits.py").splitlines() == [
        "  + limit limits.sync:concurrency: 2",
        "  + limit limits.sync:concurrency:/customer: 1",
        "  + limit shopify: 6000/m, burst 100",
        f"  + function limits.sync: {function}, fair by /customer",
        "30 orders",
        "at once: 2, of one customer: 1",
        "30 orders",
        "at once: 1",
        "waiting: the limit shopify is paused",
        "order 0",
    ]


def test_jobs_are_tried_again_put_off_and_given_up() -> None:
    assert run("examples/retries.py").splitlines() == [
        "fetch: 4 attempts, after at most 0.05 s, 0.1 s, 0.2 s",
        "  attempt 1",
        "  attempt 2",
        "  attempt 3",
        "the page at http://a/",
        "  attempt 1",
        "  attempt 2",
        "  attempt 3",
        "not tried again: this is no address",
        "  attempt 1",
        "  attempt 1",
        "  attempt 2",
        "news is online",
        "  attempt 1",
        "given up: the author took it back",
    ]


def test_dead_letters_are_read_mended_and_run_again() -> None:
    assert run("examples/dead_letters.py").splitlines() == [
        "failed: 'plum'",
        "failed: 'rock'",
        "a dead letter: raised KeyError 'plum'",
        "a dead letter: raised KeyError 'rock'",
        'its payload: {"fruit":"plum","number":2}',
        "replayed: 1",
        "the result: 40",
        "purged: 1",
        "dead letters: 0",
    ]


def test_a_shop_is_watched_on_a_page_of_its_own_site_and_hides_the_card() -> None:
    ended = 'gearflow_jobs_finished_total{function="shop.charge",outcome='
    assert run("examples/watched.py").splitlines() == [
        "EUR 700",
        "EUR 700",
        "NOK failed: 'NOK'",
        'what operators see: {"amount": 7, "currency": "NOK", "card": "(redacted)"}',
        f'{ended}"dead"}} 1.0',
        f'{ended}"succeeded"}} 2.0',
        "NOK after a replay in the dashboard: 63",
        "span: POST /orders",
        "span: send shop.charge below POST /orders",
        "span: process shop.charge linked to send shop.charge",
        "span: process shop.charge linked to send shop.charge",
    ]


def test_what_computes_holds_up_nobody_and_can_be_stopped() -> None:
    assert run("examples/cpu_bound.py").splitlines() == [
        "hello there",
        "primes below 20000: 2262",
        "boring: True",
        "stopped: task 'cpu_bound.is_boring' overran its timeout of 0.2 s; its process was killed",
        "crashed: task 'cpu_bound.reckless' ended its process, which exited with status 3",
        "its last words: here goes nothing",
    ]


def test_foreign_functions_are_called_and_call(program: Callable[[str], str]) -> None:
    program("gearman")
    assert run("examples/foreign.py") == "IS ANYBODY THERE?\n3\n"


def test_thumbnails_are_made_in_processes_and_what_is_no_image_is_left_out() -> None:
    *thumbnails, report, digest = run("examples/thumbnails.py").splitlines()
    assert thumbnails == [f"image{number:02}.thumb.png: 60 x 40" for number in range(12)]
    assert report == "left out: notes.png: notes.png is no PNG file"
    assert digest == "all pixels: 714286ab479715c5"


def test_two_crawlers_see_every_page_and_the_site_sees_each_of_them_once() -> None:
    assert run("examples/crawler.py").splitlines() == [
        "a crawler has seen 40 of 40 pages",
        "a crawler has seen 40 of 40 pages",
        "the site was asked for 40 pages, at most 1 time each",
    ]


def test_a_story_is_the_same_for_each_of_its_readers() -> None:
    assert run("examples/storyteller.py").splitlines() == [
        "words: 300 and 300",
        "the same story: True",
        "as it would be told here: True",
        "every step is one that the model has seen: True",
    ]


def test_three_languages_share_one_pipeline(program: Callable[[str], str]) -> None:
    for name, check in (("php", ["-r", "new GearmanClient;"]), ("perl", ["-MGearman::Worker", "-e1"])):
        if subprocess.run([program(name), *check], capture_output=True, check=False).returncode:
            missing(f"{name} has no gearman")
    assert run("examples/pipeline.py").splitlines() == [
        "php: 3 of 3 lines",
        "php: three two one (13)",
        "php: five four (9)",
        "php: six (3)",
    ]


# -------------------------------------------------------------------------------------------- wordcount


def test_wordcount_in_a_pipe_equals_a_plain_count() -> None:
    first, *_, totals, verdict = run("examples/shell_wordcount.py").splitlines()
    assert first.endswith("  self")
    assert " distinct" in totals
    assert verdict == "a plain count gives the same: True"


def test_wordcount_in_a_pipe_counts_the_files_of_any_directory(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("gear gear box")
    (tmp_path / "b.py").write_text("box gear")
    assert run("examples/shell_wordcount.py", str(tmp_path)).splitlines() == [
        "      3  gear",
        "      2  box",
        "5 words, 2 of them distinct",
        "a plain count gives the same: True",
    ]


def test_wordcount_of_the_standard_library_equals_a_plain_count() -> None:
    *top, totals, where, verdict = run("-m", "examples.wordcount").splitlines()
    assert len(top) == 20
    assert top[0].endswith("  self")
    assert " distinct, in " in totals
    assert where.startswith("below ")
    assert verdict == "a plain count in one process gives the same"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A directory of texts, some of them hard to read."""
    (tmp_path / "a.txt").write_text("Gear, gear; GEAR_box\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_text("box na\u00efve 42 x1\n")
    (tmp_path / "latin-1.txt").write_bytes("gear caf\u00e9 box".encode("latin-1"))
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("gear")
    (tmp_path / "binary").write_bytes(b"gear\0gear")
    (tmp_path / "empty").touch()
    return tmp_path


def test_wordcount_counts_the_texts_of_any_directory(texts: Path) -> None:
    assert run("-m", "examples.wordcount", str(texts), "--workers", "3").splitlines() == [
        "        5  gear",
        "        3  box",
        "        1  caf",
        "        1  na\u00efve",
        "        1  x",
        "11 words, 5 of them distinct, in 5 files",
        f"below {texts}",
        "a plain count in one process gives the same",
    ]


def test_wordcount_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert run("-m", "examples.wordcount", str(tmp_path)).startswith("0 words, 0 of them distinct, in 0")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_wordcount_ends_its_workers_when_it_is_interrupted(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "examples.wordcount"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert "2 workers are ready" in process.stderr.readline()
        process.send_signal(number)
        try:
            assert process.wait(PATIENCE) == 128 + number
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left in its process group


# ------------------------------------------------------------------------------------------------ fleet


def test_a_fleet_loses_a_server_and_the_primary_and_no_job() -> None:
    try:
        programs = find_bindir()
    except NoPostgres as reason:
        missing(str(reason))
    lines = run("-m", "examples.fleet", "--jobs", "600", "--programs", str(programs)).splitlines()
    assert [re.sub(r"^ *[\d.]+ s  ", "", line) for line in lines[:4]] == [
        "a primary, a standby, three servers and two worker processes are there",
        "200 jobs are acknowledged: a server is killed",
        "400 jobs are acknowledged: the primary crashes, the standby is promoted",
        "600 jobs are acknowledged: their results are fetched",
    ]
    ledger = {name: int(number) for number, name in (line.split(maxsplit=1) for line in lines[4:])}
    assert ledger["acknowledged"] == ledger["delivered"] == 600
    assert ledger["lost"] == 0
    assert ledger["runs"] >= 600


def test_a_fleet_without_postgres_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.fleet", "--programs", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert f"PostgreSQL's server was not found in {tmp_path}: install it (Debian: apt install" in done.stderr
