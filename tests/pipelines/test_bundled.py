import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.cli import main
from predictor.records.records import read_prompts
from predictor.splits.splits import near_duplicate_clusters

BUNDLED = Path(__file__).parents[2] / "checkpoints"


def test_the_prompts_are_many_and_no_two_nearly_the_same() -> None:
    """At least a thousand, of eleven kinds, in all four splits."""
    rows = read_prompts(BUNDLED / "prompts.jsonl")
    assert len(rows) >= 1000
    assert len({row.dataset for row in rows}) == 11
    assert {row.split for row in rows} == {"train", "validation", "calibration", "test"}
    assert len(np.unique(near_duplicate_clusters([row.prompt for row in rows]))) == len(rows)


def test_the_weights_are_small_and_not_pickled() -> None:
    """At most 25 MB for the predictor to serve, 50 MB for the one to train from."""
    assert (BUNDLED / "length-predictor" / "model.safetensors").stat().st_size <= 50e6
    assert (BUNDLED / "length-predictor-small" / "model.onnx").stat().st_size <= 25e6
    assert not [path for path in BUNDLED.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


@pytest.mark.parametrize("name", ["length-predictor", "length-predictor-small"])
def test_a_bundled_predictor_bounds_prompts_offline(name: str, tmp_path: Path) -> None:
    """Bounds lie between 1 and the median, and differ between prompts."""
    data, out = tmp_path / "prompts.jsonl", tmp_path / "bounds.jsonl"
    rows = [{"prompt": "Write a Python class for a thread-safe LRU cache with tests."}, {"prompt": "Name a prime."}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["predict", str(BUNDLED / name), "--data", str(data), "--out", str(out)]) == 0
    code, prime = (json.loads(line) for line in out.read_text().splitlines())
    for bound in (code, prime):
        assert 1 <= bound["output_len_lower_bound"] <= bound["output_len_median"]
    assert code["output_len_lower_bound"] > prime["output_len_lower_bound"]


def test_the_bundled_chat_model_answers() -> None:
    """SmolLM2, read from the GGUF that the set-up installs, with its chat template, greedily."""
    from pipelines.served_model.answers import generate
    from pipelines.served_model.loading import encode_chats, load_served_model
    from pipelines.settings.sampling import Sampling

    served = load_served_model("smollm2", 24, "cpu", sampling=Sampling(temperature=0.0), exact=True)
    chats = [[{"role": "user", "content": f"What is the capital of {country}?"}] for country in ("France", "Germany")]
    answers = generate(served, encode_chats(served, chats, BUNDLED), max_running=2, seed=0, description="test")
    texts = [served.tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in answers]
    assert served.name == "SmolLM2-135M-Instruct"
    assert "Paris" in texts[0]
    assert texts[0] != texts[1]
