"""The check of vLLM by HTTP: what is asked, the clock, the table; a real server is for `make test-vllm`."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.evaluate.endpoint.measure import Sent, ServerRun
from pipelines.studies.processor_time import processor_seconds
from pipelines.studies.vllm_check import cells
from pipelines.studies.vllm_check.__main__ import parse, requests_per_second
from pipelines.studies.vllm_check.cells import ALL, MIXED_CAPS, SYSTEM_PROMPT, Measured
from pipelines.studies.vllm_check.clock import ServerClock, family
from pipelines.studies.vllm_check.servers import OWN
from pipelines.studies.vllm_check.table import report

CHATS = [[{"role": "user", "content": f"question {i}"}] for i in range(9)]


def _measured(server: str, seconds: float, seed: int = 0) -> Measured:
    """Ten answers that end `seconds` after one another, half as many processor seconds."""
    sent = [Sent(i, 0.0, 0.0, 0.1 + i * seconds, (1 + i) * seconds, 20, 5, False, f"text {i}", "") for i in range(10)]
    timed = [replace(each, finish_time=each.finish_time / 2, first_token_time=0.05) for each in sent]
    counts = {"iterations": 50.0, "preemptions": 3.0, "covered": 9.0, "missed": 1.0}
    return Measured(ServerRun(server, seed, sent), ServerRun(server, seed, timed), counts)


@pytest.mark.parametrize("cell", ALL, ids=[cell.name for cell in ALL])
def test_a_plan_is_the_same_for_every_server(cell: cells.Cell) -> None:
    """Every prompt once; caps, arrivals and the system prompt as the cell says."""
    planned = cell.planned(len(CHATS), 3, 2.0)
    assert planned == cell.planned(len(CHATS), 3, 2.0)
    assert sorted(each.prompt for each in planned) == list(range(len(CHATS)))
    assert {each.max_new_tokens for each in planned} <= (set(MIXED_CAPS) if cell.has_mixed_caps else {None})
    assert any(each.arrival_time > 0 for each in planned) is (cell.load is not None)
    first = cell.chats(CHATS)[0]
    assert (first[0]["content"] == SYSTEM_PROMPT) is cell.has_system_prompt
    assert first[-1] == CHATS[0][0]


def test_the_load_is_a_share_of_what_vllms_own_scheduler_serves() -> None:
    """Ten answers in five processor seconds are two a second; arrivals at load 0.5 come half as fast as at load 1."""
    assert requests_per_second([_measured("amin", 9.0), _measured(OWN, 1.0)]) == pytest.approx(2.0)
    slow, fast = (cells.Cell("load", load=load).planned(50, 0, 2.0)[-1].arrival_time for load in (0.5, 1.0))
    assert slow == pytest.approx(2 * fast)


def test_the_table_compares_each_server_with_vllms_own() -> None:
    """On both clocks: a ratio above 1 is faster than vLLM's own; an interval only with two seeds."""
    text = report({"at once": [_measured(OWN, 1.0), _measured("amin", 0.5)]})
    seconds, processor = text.split("In processor seconds of the server:")
    assert "| at once | amin | 2.8 | 2.00 | 2.8 | 5.0 | 0.50 |" in seconds
    assert "| at once | vLLM's own | 5.5 |  | 5.5 | 9.9 |  |" in seconds
    assert "| at once | amin | 1.4 | 2.00 |" in processor
    assert text.count("| 50 | 3 | 10 of 10 | 0.90 |") == 2
    two = [_measured(name, 0.5 + (name == OWN), seed) for seed in (0, 1) for name in (OWN, "amin")]
    assert "3.00 (3.00 to 3.00)" in report({"at once": two})


def test_the_clock_counts_the_processor_time_of_a_process() -> None:
    """Of this one: a run at work takes as long by the clock as it computed, and the order of its times stays."""
    begin = os.times()
    with ServerClock(os.getpid()) as clock:
        while os.times().user - begin.user < 0.3:
            sum(range(10_000))
    spent = processor_seconds([os.getpid()])
    start, end = clock.readings[0][0], clock.readings[-1][0] - clock.readings[0][0]
    sent = Sent(0, 0.0, 0.0, end / 2, end, 20, 5, False, "", "")
    timed = clock.in_processor_time(ServerRun("amin", 0, [sent]), start).requests[0]
    assert 0 == timed.arrival_time <= timed.first_token_time <= timed.finish_time
    assert 0.2 < timed.finish_time <= spent
    assert os.getpid() in family(os.getppid())


def test_arrivals_go_by_the_servers_clock() -> None:
    """A request waits while the server computes; where it has nothing to do, the clock is put forward."""
    seen: list[float] = []

    def is_idle() -> bool:
        sum(range(100_000))  # the server's work
        seen.append(processor_seconds([os.getpid()]))
        return due > 50

    with ServerClock(os.getpid()) as clock:
        begin, due = clock.readings[0][1], 0.2
        asyncio.run(clock.wait(due, is_idle))
        assert processor_seconds([os.getpid()]) - begin >= 0.2
        assert len(seen) > 1
        for due in (100.0, 200.0, 200.0):
            asyncio.run(clock.wait(due, is_idle))


def test_an_ended_process_counts_no_more() -> None:
    """One that a server started and that has gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert processor_seconds([process.pid]) == 0


def test_paths_do_not_depend_on_the_folder_that_servers_run_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers run in the repository; what is given counts from where the command is."""
    monkeypatch.chdir(tmp_path)
    args = parse(["--out", "runs", "--predictor", "serving"])
    assert (args.out, args.predictor) == (tmp_path / "runs", tmp_path / "serving")
