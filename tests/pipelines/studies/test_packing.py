import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.studies.packed_rows import Example, packed_batches, packed_loss
from pipelines.studies.tiny_chat import answer_loss


@pytest.fixture(scope="module")
def model(random_llama: Callable[..., Any]) -> Any:
    """A random two-layer Llama."""
    return random_llama(50, tie_word_embeddings=True)


def examples(count: int) -> list[Example]:
    """Random token ids, the answer from the third token on."""
    rng = np.random.default_rng(0)
    return [(rng.integers(1, 50, int(rng.integers(4, 20))).astype(np.int32), 3) for _ in range(count)]


def test_each_example_comes_once_an_epoch_and_rows_are_full() -> None:
    """Nothing is lost but the rows of the last batch, and little is padding."""
    some = examples(200)
    rows = sum(len(ids) for ids, _ in some) // 64
    batches = list(itertools.islice(packed_batches(some, 4, 64, 1.0, 0), rows // 4))
    assert all(batch.tokens.shape == (4, 64) for batch in batches)
    assert sum(batch.num_tokens for batch in batches) > 0.9 * len(batches) * 4 * 64
    again = next(packed_batches(some, 4, 64, 1.0, 0))
    assert (again.tokens == batches[0].tokens).all()


@pytest.mark.parametrize("plan_weight", [1.0, 20.0])
def test_packing_does_not_change_the_loss(model: Any, plan_weight: float) -> None:
    """A packed row gives the loss of its examples one by one: none sees its neighbours."""
    some = examples(6)
    packed = packed_loss(model, next(packed_batches(some, 8, 128, plan_weight, 0)), torch.device("cpu"))
    padded = answer_loss(model, some, torch.device("cpu"), plan_weight)
    assert packed.item() == pytest.approx(padded.item(), rel=2e-3)


def test_the_gpu_script_runs_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, collect, fine-tune, export, evaluate; a training that is stopped continues."""
    from pipelines.studies import gpu

    rng = np.random.default_rng(0)
    words = ["river", "night", "poem", "write", "of", "sun", "moon", "sea", "list", "three", "long", "story"]
    texts = [" ".join(rng.choice(words, int(rng.integers(3, 20)))) for _ in range(200)]
    rows = {"prompt": [f"{t} {i}" for i, t in enumerate(texts)], "response": texts[::-1], "source": ["made-up"] * 200}
    pq.write_table(pa.table(rows), tmp_path / "pairs.parquet")
    argv = ["gpu", "--data", str(tmp_path / "pairs.parquet"), "--out", str(tmp_path / "gpu"), "--tiny"]
    monkeypatch.setattr("sys.argv", [*argv, "--train-minutes", "0"])
    gpu.main()
    assert not (tmp_path / "gpu" / "model").exists()
    monkeypatch.setattr("sys.argv", argv)
    gpu.main()
    assert (tmp_path / "gpu" / "evaluation" / "report.html").exists()
