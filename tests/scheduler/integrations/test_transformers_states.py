"""States that are read in the engine are those of a plain pass over prompt and answer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

CAP, PAGE, WINDOW = 40, 4, 5


@pytest.fixture(scope="module")
def model(random_llama: Callable[..., Any]) -> Any:
    """A random Llama in single precision."""
    return random_llama(
        97,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=1,
        pad_token_id=0,
    )


@pytest.fixture(scope="module")
def work() -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of several lengths, and the answers that are forced."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(2, 97, int(n)).tolist() for n in (1, 2, 5, 9, 17, 30, 41)]
    return prompts, [rng.integers(2, 97, int(n)).tolist() for n in (40, 3, 17, 1, 30, 38, 25)]


def plainly(model: Any, prompt: Sequence[int], answer: Sequence[int], out: int, layer: int) -> np.ndarray:
    """Last state, mean of the last ones and of the prompt's after `out` tokens of the answer, [3, H]."""
    import torch

    with torch.no_grad():
        tokens = torch.tensor([[*prompt, *answer[:out]]])
        states = model(input_ids=tokens, output_hidden_states=True).hidden_states[layer][0].numpy()
    first = max(len(prompt) - 1, len(states) - WINDOW)
    return np.stack([states[-1], states[first:].mean(0), states[: len(prompt)].mean(0)])


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("resume", [False, True], ids=["restart", "resume"])
@pytest.mark.parametrize("max_batch_tokens", [7, 64], ids=["chunked", "whole"])
def test_states_are_those_of_a_plain_pass(
    model: Any,
    work: tuple[list[list[int]], list[list[int]]],
    watched_loop: Callable[..., int],
    layer: int,
    resume: bool,
    max_batch_tokens: int,
) -> None:
    """Under memory pressure, whatever was evicted, at every token that a request has out; nothing stays at the end."""
    prompts, answers = work
    num_looked_at = 0

    def look(index: int, out: int, states: np.ndarray) -> None:
        nonlocal num_looked_at
        num_looked_at += 1
        if num_looked_at % 7 == 0:
            expected = plainly(model, prompts[index], answers[index], out, layer)
            np.testing.assert_allclose(states, expected, atol=2e-5)

    evictions = watched_loop(model, prompts, answers, layer, resume, max_batch_tokens, look)
    assert evictions > 0
    assert num_looked_at >= sum(len(answer) - 1 for answer in answers)


@pytest.fixture
def watched_loop() -> Callable[..., int]:
    """A function that runs forced answers in a small cache, shows each state as it comes and returns the evictions."""
    from transformers import GenerationConfig

    from scheduler.batch import RunningBatch
    from scheduler.integrations.transformers_cb import TransformersExecutor
    from scheduler.integrations.transformers_states import StateReader
    from scheduler.kv_cache import KvCache
    from scheduler.loop import Loop
    from scheduler.policies import make_policy
    from scheduler.renewals import NoRenewals, Renewal
    from scheduler.request import Request
    from scheduler.worker import Worker

    class Watch(NoRenewals):
        def __init__(self, states: StateReader, look: Callable[..., None]) -> None:
            self.states, self.look = states, look

        def wait(self, running: RunningBatch) -> float:
            return 1

        def take(self, running: RunningBatch) -> Sequence[tuple[int, Renewal]]:
            for index in running:
                out = self.states.num_generated(str(index))
                assert out < running.num_generated(index) or out == -1
                if 0 <= out == running.num_generated(index) - 1:  # less while kept tokens are read again
                    self.look(index, out, self.states.read([str(index)])[0])
            return ()

    def run(
        model: Any,
        prompts: list[list[int]],
        answers: list[list[int]],
        layer: int,
        resume: bool,
        max_batch_tokens: int,
        look: Callable[..., None],
    ) -> int:
        settings = GenerationConfig(do_sample=False, max_new_tokens=CAP, eos_token_id=1, pad_token_id=0)
        layers = model.model.layers
        states = StateReader(
            layers[max(0, layer - 1)],
            is_input=layer == 0,
            hidden_size=32,
            window=WINDOW,
            max_batch_tokens=max_batch_tokens,
        )
        worker = Worker(KvCache(24, PAGE), resume=resume, max_batch_tokens=max_batch_tokens)
        executor = TransformersExecutor(model, prompts, worker, settings, forced_tokens=answers, states=states)
        requests = [Request(str(i), len(prompt), CAP) for i, prompt in enumerate(prompts)]
        policy = make_policy("fcfs", worker, np.random.default_rng(0), output_lens=None)
        result = Loop(policy, executor, requests, renewals=Watch(states, look)).run()
        executor.close()
        assert [executor.outputs[i].tokens for i in range(len(prompts))] == answers
        assert all(states.num_generated(str(i)) == -1 for i in range(len(prompts)))
        states.close()
        return int(result.num_evictions.sum())

    return run
