import json
import stat
from pathlib import Path

import numpy as np
import pytest

from pipelines.deployment.fit import fit_clock
from pipelines.deployment.iteration_logs import read_iterations
from pipelines.deployment.kernels import cells
from pipelines.deployment.measured_kernels import SCRIPT, ask
from scheduler.cost_model import CostModel
from scheduler.deployments.iteration_times import iteration_seconds
from scheduler.errors import InputError

CLOCK = CostModel(0.00617, 1.8e-5, 1.2e-5, 4e-8, 0.001)


def _iterations(clock: CostModel) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    work = np.array(list(cells(256, 8192, 400_000)), dtype=np.float64)
    return np.column_stack([iteration_seconds(clock, work), work])


def test_a_clock_is_found_again() -> None:
    """The fit of iterations that a clock made is that clock, with no error left."""
    clock, error = fit_clock(_iterations(CLOCK))
    work = np.array([[500, 100, 5e4]])
    assert iteration_seconds(clock, work)[0] == pytest.approx(iteration_seconds(CLOCK, work)[0], 1e-3)
    assert clock.seconds_per_kv_token == pytest.approx(4e-8, rel=1e-2)
    assert error.worst < 1e-3


def test_the_error_is_what_the_clock_is_off_by() -> None:
    """With errors of 10 % up and down on the iterations, the fit reports about 10 %."""
    iterations = _iterations(CLOCK)
    iterations[:, 0] *= np.where(np.arange(len(iterations)) % 2, 1.1, 0.9)
    assert fit_clock(iterations)[1].median == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("bad", [np.zeros((20, 4)), np.ones((3, 4)), np.full((20, 4), np.nan)])
def test_no_clock_is_made_of_nothing(bad: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
    """Iterations of no time, too few, or not numbers are refused."""
    with pytest.raises(InputError, match="iteration"):
        fit_clock(bad)


def test_vllm_statistics_give_the_clock(tmp_path: Path) -> None:
    """Ten-second averages of a server with a known clock give it back; idle lines and other text do not count."""
    idle = (
        "Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 0.0 tokens/s, Running: 0 reqs, Waiting: 0 reqs"
    )
    lines = ["INFO GPU KV cache size: 432,992 tokens", f"{idle}, GPU KV cache usage: 0.0%"]
    rng = np.random.default_rng(0)
    for _ in range(50):
        running, tokens, share = int(rng.integers(10, 256)), float(rng.integers(10, 1000)), float(rng.uniform(1, 99))
        seconds = float(iteration_seconds(CLOCK, np.array([[tokens, running, share / 100 * 432_992]]))[0])
        lines.append(
            f"INFO 11-28 02:20 [loggers.py:248] Engine 000: Avg prompt throughput: {tokens / seconds:.1f} tokens/s, "
            f"Avg generation throughput: {running / seconds:.1f} tokens/s, Running: {running} reqs, Waiting: 3 reqs, "
            f"GPU KV cache usage: {share:.1f}%, Prefix cache hit rate: 1.0%"
        )
    log = tmp_path / "vllm.log"
    log.write_text("\n".join(lines))
    found = read_iterations(log, None)
    assert found.kv_tokens == 432_992
    assert len(found.iterations) == 50
    clock, error = fit_clock(found.iterations)
    assert error.worst < 0.02
    assert clock.seconds_per_kv_token == pytest.approx(4e-8, rel=0.05)


def test_a_log_without_iterations_is_refused(tmp_path: Path) -> None:
    """Each kind in one line that says what to give."""
    log = tmp_path / "vllm.log"
    log.write_text("hello\n")
    with pytest.raises(InputError, match="give --kv-tokens"):
        read_iterations(log, None)
    with pytest.raises(InputError, match="no statistics of a busy vLLM"):
        read_iterations(log, 1000)
    rows = tmp_path / "i.jsonl"
    rows.write_text('{"seconds": 0.1, "prefill_tokens": 5, "decoding_requests": "x", "kv_tokens": 1}\n')
    with pytest.raises(InputError, match="line 1: decoding_requests is 'x'"):
        read_iterations(rows, None)
    with pytest.raises(InputError, match="no runs"):
        read_iterations(tmp_path, None)


def test_iterations_of_evaluate_and_of_rows_are_the_same(tmp_path: Path) -> None:
    """What amin evaluate keeps and a JSONL of the same iterations give the same array."""
    iterations = _iterations(CLOCK)
    (tmp_path / "runs").mkdir()
    np.savez(tmp_path / "runs" / "fcfs-0.npz", iterations=iterations)
    rows = tmp_path / "i.jsonl"
    names = ("seconds", "prefill_tokens", "decoding_requests", "kv_tokens")
    rows.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in iterations.tolist()))
    assert (read_iterations(tmp_path, None).iterations == read_iterations(rows, None).iterations).all()


def _interpreter(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\ncat > {path}.query\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_aisimulate_is_asked_in_its_own_environment(tmp_path: Path) -> None:
    """The other interpreter is given the query on standard input, and its answer is read."""
    answer = {
        "kv_tokens": 432_992, "kv_bytes_per_token": 131_072, "kv_dtype": "bfloat16", "weights_bytes": 16_059_990_016,
        "aisimulate": "0.13", "engine_version": "0.24.0", "iterations": _iterations(CLOCK).tolist(),
    }  # fmt: skip
    (tmp_path / "answer").write_text(json.dumps(answer))
    python = _interpreter(tmp_path / "python", f"cat {tmp_path}/answer")
    kernels = ask(python, {"model": "m", "hardware": "h", "engine": "vllm"})
    assert json.loads((tmp_path / "python.query").read_text())["model"] == "m"
    assert kernels.kv_tokens == 432_992
    assert kernels.engine == "vllm 0.24.0"
    assert "131072 bytes a token" in kernels.source


def test_what_aisimulate_does_not_know_is_one_line(tmp_path: Path) -> None:
    """The last line of its error is the reason; an interpreter that is not there says how to make one."""
    python = _interpreter(tmp_path / "python", "echo trace >&2; echo 'ValueError: no perf database' >&2; exit 1")
    with pytest.raises(InputError, match=r"no kernels for m on h: ValueError: no perf database$"):
        ask(python, {"model": "m", "hardware": "h", "engine": "vllm"})
    with pytest.raises(InputError, match="makes one"):
        ask(tmp_path / "none", {})


def test_the_asking_script_needs_nothing_of_ours() -> None:
    """It runs where the product is not installed: it imports the standard library only, until it is asked."""
    imports = [line for line in SCRIPT.read_text().splitlines() if line.startswith(("import ", "from "))]
    assert imports
    assert not any(word in line for line in imports for word in ("pipelines", "scheduler", "predictor", "numpy"))


def test_the_grid_stays_within_the_deployment() -> None:
    """No cell has more requests, tokens of an iteration or KV tokens than there is room for."""
    for prefill, running, kv_tokens in cells(64, 2048, 50_000):
        assert running <= 64
        assert prefill + running <= 2048
        assert kv_tokens <= 50_000
