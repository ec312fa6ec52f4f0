"""Prefix caching on, as vLLM has it: a block that several requests share is counted once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="make test-vllm has an environment with vLLM")
pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's, not ours

CACHING = {"enable_prefix_caching": True}
SHARES = {"output_len_lower_bound": 0.75, "output_len_prediction": 1.0, "output_len_upper_bound": 1.4}
POLICIES = ["amin", "amin-survival"]


Shape = list[tuple[list[int], int, int]]
"""Requests: prompt, what a predictor says of it in the middle, and the true length."""


def one_prompt(rng: np.random.Generator) -> Shape:
    """24 requests with one prompt and equally long answers."""
    return [(list(range(97)), 20, 20)] * 24


def system_prompt(rng: np.random.Generator) -> Shape:
    """A prefix of 64 tokens that everyone begins with, then words of their own."""
    own = [rng.integers(500, 1000, rng.integers(1, 30)).tolist() for _ in range(40)]
    return [([*range(64), *words], *_lengths(rng, int(rng.integers(5, 60)))) for words in own]


def draws(rng: np.random.Generator) -> Shape:
    """Ten prompts with four draws each."""
    prompts = [(rng.integers(500, 1000, rng.integers(20, 80)).tolist(), int(rng.integers(10, 40))) for _ in range(10)]
    return [(prompt, middle, _lengths(rng, middle)[1]) for prompt, middle in prompts for _ in range(4)]


def conversations(rng: np.random.Generator) -> Shape:
    """A system prompt, under it eight histories, under each five last turns."""
    histories = [rng.integers(500, 1000, 32).tolist() for _ in range(8)]
    turns = [[*range(32), *history, *rng.integers(500, 1000, 9).tolist()] for history in histories for _ in range(5)]
    return [(turn, *_lengths(rng, int(rng.integers(5, 50)))) for turn in turns]


def _lengths(rng: np.random.Generator, middle: int) -> tuple[int, int]:
    return middle, max(1, int(middle * rng.uniform(0.7, 1.5)))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", [one_prompt, system_prompt, draws, conversations])
def test_shared_prompts_take_no_longer_than_with_vllm(
    make_engine: Callable[..., Any], vllms_own: Any, shape: Callable[..., Shape], policy: str, depth: int
) -> None:
    """All arrive at once, in 14 blocks. In iterations, within 1.05 of vLLM's own: the mean end of a request.

    Where all answers are equally long nobody can be put first, and it is the end of the last one.
    """
    workload = shape(np.random.default_rng(5))
    ours = make_engine(14, depth, vllm=CACHING, policy=policy)
    own = make_engine(14, depth, vllms_own, vllm=CACHING)
    for engine in (ours, own):
        for i, (tokens, middle, output_len) in enumerate(workload):
            bounds = {name: max(1, int(share * middle)) for name, share in SHARES.items()}
            engine.add(f"r{i}", tokens, output_len, **bounds)
        engine.run(check=False)
        engine.check_tokens(engine.requests)
    if shape is one_prompt:
        assert ours.num_steps <= 1.05 * own.num_steps
    else:
        assert ours.mean_end <= 1.05 * own.mean_end
