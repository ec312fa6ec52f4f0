"""Prompts that are read ahead give the states that the engine has after their prefill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROMPTS = [[5], [7, 8, 9], list(range(4, 44)), [11] * 17, list(range(60, 20, -1))]


@pytest.fixture(scope="module")
def served(chat_model: Path) -> Any:
    """The random chat model in single precision."""
    from pipelines.served_model.loading import load_served_model

    return load_served_model(str(chat_model), 8, "cpu", exact=True)


@pytest.fixture
def after_prefill(served: Any) -> Callable[..., Any]:
    """A function that returns the states of prompts right after their prefill in the engine, [N, 3, H].

    It reads the prompts ahead, too, between the iterations of that engine, and returns those states as well.
    """
    from pipelines.served_model.hidden_states import decoder_layers
    from pipelines.served_model.prompt_states import prompt_states
    from scheduler.integrations.transformers_cb import TransformersExecutor
    from scheduler.integrations.transformers_states import StateReader
    from scheduler.kv_cache import KvCache
    from scheduler.loop import Loop
    from scheduler.policies import make_policy
    from scheduler.request import Request
    from scheduler.worker import Worker

    def run(layer: int, max_batch_tokens: int) -> Any:
        found: dict[int, Any] = {}
        ahead: list[Any] = []

        class Watched(StateReader):
            def note(self, chunks: Any) -> None:
                super().note(chunks)
                for chunk in chunks:
                    if self.num_generated(chunk.request_id) == 0:
                        found[int(chunk.request_id)] = self.read([chunk.request_id])[0]
                ahead.append(prompt_states(served, layer, PROMPTS))

        module = decoder_layers(served)[max(0, layer - 1)]
        hidden_size = served.model.config.hidden_size
        reader = Watched(
            module, is_input=layer == 0, hidden_size=hidden_size, window=4, max_batch_tokens=max_batch_tokens
        )
        worker = Worker(KvCache(60, 4), resume=True, max_batch_tokens=max_batch_tokens)
        executor = TransformersExecutor(
            served.model, PROMPTS, worker, served.generation_config, forced_lens=[3] * len(PROMPTS), states=reader
        )
        requests = [Request(str(i), len(prompt), 8) for i, prompt in enumerate(PROMPTS)]
        Loop(make_policy("fcfs", worker, np.random.default_rng(0)), executor, requests).run()
        tokens = [executor.outputs[i].tokens for i in range(len(PROMPTS))]
        executor.close()
        reader.close()
        return np.stack([found[i] for i in range(len(PROMPTS))]), ahead, tokens

    return run


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("max_batch_tokens", [16, 200], ids=["chunked", "whole"])
def test_a_state_read_ahead_is_that_of_the_prefill(
    after_prefill: Callable[..., Any], served: Any, layer: int, max_batch_tokens: int
) -> None:
    """Whatever the engine does meanwhile, and the engine does the same as without."""
    at_prefill, ahead, tokens = after_prefill(layer, max_batch_tokens)
    for states in ahead:
        np.testing.assert_allclose(states, at_prefill, atol=2e-5)
    for prompt, answer in zip(PROMPTS, tokens, strict=True):
        assert answer == greedy(served, prompt)


def greedy(served: Any, prompt: list[int]) -> list[int]:
    """The three likeliest tokens one after the other, by plain passes over all that there is."""
    import torch

    tokens = list(prompt)
    for _ in range(3):
        with torch.no_grad():
            tokens.append(int(served.model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_what_a_prompt_tells_does_not_wait_for_its_first_token(served: Any, make_probe: Callable[..., Path]) -> None:
    """The forecast is of the whole length, from one token on; the mixed one goes with the prompt's own forecast."""
    from pipelines.probe.renewed_bounds import RenewedBounds, at_arrival
    from predictor.bounds.bins import LengthBins
    from predictor.probe.probe import Probe

    forecast = at_arrival(LengthBins((0, 1, 2, 4, 8)), np.array([1.0, 0.8, 0.4, 0.2, 0.1]))
    assert forecast.edges.tolist() == [0, 1, 2, 4, 8]
    np.testing.assert_allclose(forecast.survival, [1.0, 0.8, 0.4, 0.2, 0.1])
    bounds = RenewedBounds(Probe.load(make_probe()), 0.1)
    states = np.random.default_rng(0).normal(size=(2, 3, served.model.config.hidden_size)).astype(np.float32)
    told = bounds.of_prompts(states, [3, 40], [None, None])
    assert [renewal.num_generated for renewal in told if renewal] == [0, 0]
    assert bounds.num_renewed == bounds.num_failed == 0
    states[1] = np.nan
    assert [renewal is None for renewal in bounds.of_prompts(states, [3, 40], [None, None])] == [False, True]
    assert (bounds.num_renewed, bounds.num_failed) == (0, 1)
