from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate.report import notes, summary, write_report
from pipelines.results import PolicyRun, policy_figures, print_tables, table
from scheduler.kv_cache import KvCache
from scheduler.request import Request
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload


def policies(**mean_latency: float) -> dict[str, dict[str, dict[str, float]]]:
    """Means as in `results.json`."""
    rest = dict.fromkeys(
        (
            "p99_latency",
            "mean_ttft",
            "mean_tpot",
            "throughput",
            "makespan",
            "num_evictions",
            "recomputed_share",
            "mean_kv_utilization",
            "mean_queue_depth",
        ),
        1.0,
    )
    return {name.replace("_", "-"): {"mean": {"mean_latency": value, **rest}} for name, value in mean_latency.items()}


def test_the_sentence_says_by_how_much() -> None:
    """Ratios to fcfs and fcfs-reserve, and the share by which hindsight is below."""
    text = summary(policies(fcfs=30.0, fcfs_reserve=40.0, amin=20.0, hindsight=15.0))
    assert text == (
        "Amin with this predictor was 1.50x faster than fcfs, 2.00x faster than fcfs-reserve in mean latency; "
        "hindsight, which knows every length, took 25% less."
    )


def test_the_sentence_does_not_hide_a_loss() -> None:
    """A higher latency is named as such."""
    text = summary(policies(fcfs=10.0, amax=20.0, amin=20.0, hindsight=25.0))
    assert "2.00x SLOWER than fcfs, as fast as amax" in text
    assert "took 25% more" in text


def test_a_gain_within_its_interval_is_no_gain() -> None:
    """The sentence says that it cannot be told from none."""
    entries: dict[str, Any] = policies(fcfs=10.0, amin=9.0)
    entries["amin"]["versus_fcfs"] = {"mean_latency": {"ratio": 1.11, "ratio_interval_95": 0.2}}
    assert "not measurably faster (95 % interval 0.91 to 1.31) than fcfs" in summary(entries)


def test_the_notes_say_when_it_cannot_help() -> None:
    """An empty queue, loose bounds and a heavier tail are named."""
    entries: dict[str, Any] = policies(fcfs=10.0, amin=9.0)
    for name, tail in (("fcfs", 10.0), ("amin", 13.0)):
        entries[name]["mean"] |= {"mean_queueing_delay": 0.1, "p99_latency": tail}
    results = {"policies": entries, "bounds": {"tightness": 0.2}}
    text = " ".join(notes(results))
    for part in ("waited 1% of its latency", "tightness 0.20", "amin took 1.30 times"):
        assert part in text


@pytest.mark.parametrize(("names", "reference"), [(("amin", "fcfs"), "fcfs"), (("amax", "amin"), "amax")])
def test_the_table_compares_with_fcfs_where_there_is_one(names: tuple[str, str], reference: str) -> None:
    """Else with the first policy."""
    header, rows = table(policies(**{name: 10.0 * (i + 1) for i, name in enumerate(names)}))
    assert header[1] == f"vs {reference}"
    assert {row[0]: row[1] for row in rows}[reference] == "1.00x"


@pytest.fixture
def figures_and_runs() -> tuple[dict[str, Any], list[PolicyRun]]:
    """Of two policies on requests of two classes, one of which has a name that breaks lines and marks up."""
    names = ["chat", "a\nb <i>\x1b[31m"]
    requests = [Request(f"r{i}", 3, 9, output_len_lower_bound=2, service_class=names[i % 2]) for i in range(6)]
    worker, workload = Worker(KvCache(30)), Workload(requests, [4, 9, 2, 7, 3, 5])
    runs = [PolicyRun(name, 0, requests, simulate(name, workload, worker, 0)) for name in ("fcfs", "amin")]
    return policy_figures(runs, worker.kv_cache), runs


def test_every_row_of_the_table_by_class_is_a_line(
    figures_and_runs: tuple[dict[str, Any], list[PolicyRun]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A name from a user's file neither breaks the table nor reaches the terminal as a command."""
    print_tables(figures_and_runs[0])
    overall, classes = capsys.readouterr().out.split("\n\n")
    assert len(overall.splitlines()) == 3
    assert len(classes.splitlines()) == 5
    assert "\x1b" not in classes
    assert classes.count(r"a\nb <i>\x1b[31m") == 2


def test_the_report_has_the_table_by_class(
    figures_and_runs: tuple[dict[str, Any], list[PolicyRun]], tmp_path: Path
) -> None:
    """Where requests have classes, and not otherwise; their names are text there."""
    figures, runs = figures_and_runs
    results: dict[str, Any] = {
        "policies": figures,
        "kv_budget": 30,
        "block_size": 1,
        "bounds": {"tau": 0.1, "mean_bound": 2.0, "model": "m", "fallback_share": None},
        "workload": {"num_requests": 6, "num_prompt_tokens": 18, "arrivals": "all-at-once", "decoding": "greedy"},
        "eviction": "restart",
        "environment": {},
    }
    write_report(tmp_path, results, runs, [2] * 6, None)
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Classes</h2>" in page
    assert page.count("<td>chat</td>") == 2
    assert page.count("b &lt;i&gt;") == 2
    for entry in figures.values():
        del entry["classes"]
    write_report(tmp_path, results, runs, [2] * 6, None)
    assert "<h2>Classes</h2>" not in (tmp_path / "report.html").read_text()
