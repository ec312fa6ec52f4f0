"""States of a served model: what a forward pass gives out, for whole answers at once."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.served_model.answer_states import Answer, answer_states
from pipelines.served_model.hidden_states import state_source
from pipelines.served_model.loading import ServedModel, load_served_model
from pipelines.served_model.weights_digest import folder_digest, weights_digest
from predictor.errors import InputError


@pytest.fixture(scope="module")
def served(chat_model: Path) -> ServedModel:
    """The random model of the tests, in single precision."""
    return load_served_model(str(chat_model), 64, "cpu", exact=True)


def made_up(rng: np.random.Generator, sizes: list[tuple[int, int]]) -> list[Answer]:
    """Answers of random tokens: prompt and answer of these lengths."""
    return [
        Answer(k, 0, rng.integers(4, 200, prompt).tolist(), rng.integers(4, 200, answer).tolist())
        for k, (prompt, answer) in enumerate(sizes)
    ]


def test_states_are_what_a_forward_pass_gives_out(served: ServedModel) -> None:
    """The last, the recent and the prompt's, wherever the answer goes on, whatever the answers they are read with."""
    answers = made_up(np.random.default_rng(0), [(7, 40), (30, 9), (12, 1), (3, 17)])
    source = state_source(served, (0, 1))
    states = answer_states(served, source, answers)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in served.model.modules())
    expected = [t for answer in answers for t in (0, 8, 16, 32) if t < len(answer.tokens)]
    assert states.generated.tolist() == expected
    for answer in answers:
        rows = np.flatnonzero(states.prompt == answer.prompt)
        with torch.inference_mode():
            whole_answer = torch.tensor([[*answer.prompt_tokens, *answer.tokens]])
            found = served.model(whole_answer, output_hidden_states=True).hidden_states
        size = len(answer.prompt_tokens)
        for place in (0, 1):
            whole = found[place][0].numpy()
            for row in rows:
                now = size + states.generated[row]
                np.testing.assert_allclose(states.last[row, place], whole[now - 1], atol=2e-3)
                np.testing.assert_allclose(
                    states.recent[row, place], whole[max(size - 1, now - 16) : now].mean(0), atol=2e-3
                )
                np.testing.assert_allclose(states.prompt_mean[row, place], whole[:size].mean(0), atol=2e-3)


def test_the_last_layer_gives_out_what_no_norm_has_touched(served: ServedModel) -> None:
    """An engine's hook on a layer reads the same."""
    answers = made_up(np.random.default_rng(1), [(5, 3)])
    states = answer_states(served, state_source(served, (2,)), answers)
    with torch.inference_mode():
        normed = served.model.model.norm(torch.from_numpy(states.last[0, 0].astype(np.float32)))
        found = served.model(torch.tensor([answers[0].prompt_tokens]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(normed, found[-1][0, -1], atol=5e-3)


def test_a_layer_that_does_not_exist_is_one_line(served: ServedModel) -> None:
    """It says which there are; a model that is not made of layers is refused as well."""
    with pytest.raises(InputError, match=r"--states: random-chat has layers 0 \(the embedding\) to 2, not 3"):
        state_source(served, (1, 3))
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=4))
    strange: Any = torch.nn.Linear(2, 2)
    strange.config = config
    with pytest.raises(InputError, match="no hidden states"):
        state_source(replace(served, model=strange), (0,))


def test_a_model_is_known_by_its_weights(served: ServedModel, chat_model: Path) -> None:
    """In every precision by the same hash, packed or not; another weight gives another."""
    ours = served.revision
    assert load_served_model(str(chat_model), 64, "cpu").revision == ours
    other = load_served_model(str(chat_model), 64, "cpu", exact=True).model
    assert weights_digest(other.to(torch.bfloat16)) == ours
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight += 1
    assert weights_digest(other) != ours


def test_a_models_files_tell_the_same_as_the_model(served: ServedModel, chat_model: Path, tmp_path: Path) -> None:
    """Without loading it; a folder that has other weights, or none, is one line."""
    assert folder_digest(chat_model) == served.revision
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(chat_model / name, tmp_path)
    with pytest.raises(InputError, match="no weights called"):
        folder_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="no weights that can be read"):
        folder_digest(tmp_path)
    with pytest.raises(InputError, match="no weights that can be read"):
        folder_digest(tmp_path / "nowhere")
