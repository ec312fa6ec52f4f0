from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

CAP = 40
PAGE = 4


@pytest.fixture(scope="module")
def model(random_llama: Callable[..., Any]) -> Any:
    """A random Llama with two query heads per key head, in single precision."""
    return random_llama(
        97,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=1,
        pad_token_id=0,
    )


@pytest.fixture
def answers(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A function that returns greedy answers under a policy, with our attention or the stock one."""
    from transformers import GenerationConfig

    from scheduler.integrations import transformers_attention, transformers_engine
    from scheduler.integrations.transformers_cb import TransformersExecutor
    from scheduler.kv_cache import KvCache
    from scheduler.loop import Loop
    from scheduler.policies import make_policy
    from scheduler.request import Request
    from scheduler.worker import Worker

    rng = np.random.default_rng(3)
    prompts = [rng.integers(2, 97, int(n)).tolist() for n in (1, 2, 3, 4, 5, 8, 9, 17, 30, 31, 40, 60)]
    settings = GenerationConfig(do_sample=False, max_new_tokens=CAP, eos_token_id=1, pad_token_id=0)

    def run(num_blocks: int, *, own: bool, resume: bool = False, max_batch_tokens: int = 24) -> Any:
        attention = transformers_attention.use_own_keys if own else (lambda cache: False)
        monkeypatch.setattr(transformers_engine, "use_own_keys", attention)
        worker = Worker(KvCache(num_blocks, PAGE), resume=resume, max_batch_tokens=max_batch_tokens)
        executor = TransformersExecutor(model, prompts, worker, settings)
        requests = [Request(str(i), len(prompt), CAP) for i, prompt in enumerate(prompts)]
        policy = make_policy("fcfs", worker, rng, output_lens=None)
        result = Loop(policy, executor, requests).run()
        executor.close()
        assert model.config._attn_implementation == "sdpa"
        return [executor.outputs[i].tokens for i in range(len(prompts))], int(result.num_evictions.sum())

    yield run
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("num_blocks", [400, 60, 27])
def test_tokens_are_those_of_the_stock_attention(answers: Callable[..., Any], num_blocks: int, resume: bool) -> None:
    """Greedily, with prompts prefilled in parts, and under evictions that restart or resume."""
    stock, _ = answers(400, own=False, max_batch_tokens=400)
    ours, num_evictions = answers(num_blocks, own=True, resume=resume)
    assert ours == stock
    assert (num_evictions > 0) == (num_blocks < 400)


def test_pages_far_apart_are_gathered(answers: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens whether pages are used where they lie or copied together first."""
    from scheduler.integrations import transformers_attention

    stock, _ = answers(400, own=False)
    monkeypatch.setattr(transformers_attention, "MAX_SPREAD", 0)
    assert answers(60, own=True)[0] == stock


def test_what_pages_held_before_does_not_matter(model: Any) -> None:
    """Even memory that held no numbers: an engine starts with a clean cache."""
    import torch

    from scheduler.integrations.transformers_pages import Pages

    memory = torch.full((4, 2, 3, 5, 6), float("nan"))
    Pages(list(memory[:2]), list(memory[2:]), 5)
    assert (memory == 0).all()


def test_a_model_that_ran_in_an_engine_generates_as_before(model: Any) -> None:
    """With the setting left in place, as after `generate_batch`, ordinary generation is that of sdpa."""
    import torch

    from scheduler.integrations import transformers_attention

    tokens = torch.arange(2, 22)[None]
    arguments = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 12, "do_sample": False}
    stock = model.generate(tokens, **arguments)
    model.config._attn_implementation = transformers_attention.NAME
    try:
        assert model.generate(tokens, **arguments).tolist() == stock.tolist()
    finally:
        model.config._attn_implementation = "sdpa"
