import json
from pathlib import Path

import pytest

from pipelines.simulate.resampling import volumes
from pipelines.studies import deployed, fidelity
from scheduler.cost_model import CostModel


def test_a_cell_is_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every policy has its gain over fcfs, and that of fcfs is 1; a cell that is there is not run again."""
    cells = [
        deployed.Cell("qwen3-32b-h100", "lmsys-shaped", 80, None, ("fcfs", "amin-survival")),
        deployed.Cell("llama-3.1-8b-h100", "reasoning", 40, 0.9, ("fcfs", "sjf"), 2, "least-requests"),
    ]
    monkeypatch.setattr(deployed, "cells", lambda: iter(cells))
    monkeypatch.setattr("sys.argv", ["deployed", "--out", str(tmp_path), "--seeds", "2"])
    deployed.main()
    done = json.loads((tmp_path / "deployed.json").read_text())
    assert [done[cell.name]["fcfs"]["ratio"]["gain"] for cell in cells] == [1, 1]
    assert "reasoning:40 on llama-3.1-8b-h100, load 0.9, 2 replicas, least-requests" in capsys.readouterr().out
    monkeypatch.setattr(deployed, "run_cell", lambda *_: pytest.fail("measured again"))
    deployed.main()


def test_the_planned_cells_differ_and_exist() -> None:
    """No two have one name, and each names a deployment, a source and a routing that there are."""
    cells = list(deployed.cells())
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert deployed.read_deployment(cell.deployment).kv_tokens > 0
        assert cell.source in deployed.MADE_UP
        assert cell.routing in deployed.ROUTINGS


def test_oversubscription_is_of_what_full_slots_hold() -> None:
    """At 1 the cache holds what 256 slots hold on average; at 2 half of it."""
    workload = fidelity.chats(500)
    held = 256 * volumes(workload).sum() / sum(workload.output_lens)
    assert fidelity.kv_tokens_at(workload, 1.0) == int(held)
    assert fidelity.kv_tokens_at(workload, 2.0) == int(held / 2)


@pytest.mark.parametrize("engine", fidelity.ENGINES, ids=lambda engine: engine.name)
def test_each_policy_that_stands_for_an_engine_serves_every_request(engine: fidelity.Engine) -> None:
    """Under pressure, too; and the table has their figure next to ours."""
    workload = fidelity.chats(120)
    blocks = 9_000 // engine.block_size
    figures = fidelity.ours(engine, workload, blocks, CostModel(0.006, 2e-5, 1e-5, 4e-8, 0.005))
    assert figures["mean_latency"] > 0
    row = {"engine": engine.name, "oversubscription": 1.4, "arrivals": "at once", "theirs": figures, "ours": figures}
    assert "(+0.0%)" in fidelity.table([row])


def test_requests_of_a_trace_share_no_block(tmp_path: Path) -> None:
    """Every block hash stands once, and there are as many as each prompt has blocks."""
    workload = fidelity.chats(50)
    fidelity._write_trace(tmp_path / "trace.jsonl", workload, 16)
    rows = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    hashes = [each for row in rows for each in row["hash_ids"]]
    assert len(hashes) == len(set(hashes))
    assert all(len(row["hash_ids"]) == -(-row["input_length"] // 16) for row in rows)
