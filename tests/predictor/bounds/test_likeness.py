"""What the names of served models tell, and the weights that follow."""

import numpy as np
import pytest

from predictor.bounds.likeness import ModelFacts, likeness


@pytest.mark.parametrize(
    ("name", "family", "billions", "thinks"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama", 8, False),
        ("Mixtral-8x7B-Instruct-v0.1", "mistral", 56, False),
        ("Ministral-8B-Instruct-2410", "mistral", 8, False),
        ("Qwen/Qwen3-30B-A3B-Thinking-2507", "qwen", 30, True),
        ("sky-t1-32b", "qwen", 32, True),
        ("SmolLM2-135M-Instruct", "smollm", 0.135, False),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "deepseek", 1.5, True),
        ("gpt-4o-mini", "gpt", None, False),
        ("prod-chat", "prod", None, False),
        ("7", "", None, False),
        ("zero-0b", "zero", None, False),
    ],
)
def test_a_name_tells_family_size_and_thinking(name: str, family: str, billions: float | None, thinks: bool) -> None:
    """As far as it does."""
    assert ModelFacts.of_name(name) == ModelFacts(family, billions, thinks)


def test_weights_are_a_mixture_of_the_others() -> None:
    """They sum to 1, favour what is nearer, leave out the model itself, and are equal where a name tells nothing."""
    known = ("gemma-3-4b-it", "gemma-3-12b-it", "Llama-3.1-8B-Instruct", "Llama-3.3-70B-Instruct")
    weights = likeness("gemma-3-27b-it", known)
    assert weights.sum() == pytest.approx(1)
    assert weights[1] > weights[0] > weights[2:].max()
    assert likeness("gemma-3-4b-it", known)[0] == 0
    assert likeness("prod-chat", known) == pytest.approx(np.full(4, 0.25))
    assert likeness("only", ("only",)) == pytest.approx([1.0])
