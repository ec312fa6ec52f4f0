import gc
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predictor.errors import InputError as PredictorInputError
from scheduler.errors import InputError
from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.kv_cache import KvCache
from scheduler.policies import make_policy
from scheduler.policy import Policy
from scheduler.request import Request
from scheduler.worker import Worker

CAP, PAGE_SIZE = 40, 16


class Words:
    """Stands for a served model's tokenizer: token ids to words."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Return a word a token."""
        return " ".join(f"w{token}" for token in token_ids)


@pytest.fixture(scope="module")
def model(random_llama: Callable[..., Any]) -> Any:
    """A random two-layer Llama."""
    ids = {"eos_token_id": 3, "pad_token_id": 0}
    return random_llama(200, max_position_embeddings=256, attn_implementation="sdpa", **ids)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Sixteen prompts of 3 to 29 tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(4, 200, int(n)).tolist() for n in rng.integers(3, 30, 16)]


def generation_config() -> Any:
    """Greedy, up to the cap."""
    from transformers import GenerationConfig

    return GenerationConfig(max_new_tokens=CAP, do_sample=False, eos_token_id=3, pad_token_id=0)


def unchanged(request: Request) -> Request:
    """What goes on without a prediction."""
    return request


def made_up(requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> Sequence[Request]:
    """Bounds that differ from request to request."""
    bounds = [1 + sum(ids) % CAP for ids in prompts]
    return [
        replace(request, output_len_lower_bound=bound, output_len_prediction=bound)
        for request, bound in zip(requests, bounds, strict=True)
    ]


def config_of(policy: str, num_blocks: int) -> Any:
    """The engine's settings under a policy with made-up bounds."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    from scheduler.integrations.transformers_scheduler import PAGE_SIZE_FIELD, register

    def new_policy(worker: Worker) -> Policy:
        assert worker.kv_cache == KvCache(num_blocks, PAGE_SIZE)
        return make_policy(policy, worker, np.random.default_rng(0))

    name = register(
        f"policy-under-test-{policy}-{num_blocks}",
        PAGE_SIZE,
        new_policy,
        lambda: BackgroundPredictions(made_up, unchanged, timeout=30.0),
    )
    settings = {
        PAGE_SIZE_FIELD: PAGE_SIZE,
        "num_blocks": num_blocks,
        "max_batch_tokens": 48,
        "scheduler_type": name,
        "allow_block_sharing": False,
        "use_async_batching": False,
    }
    return ContinuousBatchingConfig(**settings)


def drive(model: Any, config: Any, prompts: list[list[int]]) -> tuple[Any, dict[str, Any]]:
    """The scheduler and the outputs by request of a run in this thread, one iteration after another."""
    import torch

    manager = model.init_continuous_batching(generation_config=generation_config(), continuous_batching_config=config)
    processor = manager.batch_processor = manager._create_batch_processor()
    for i, prompt in enumerate(prompts):
        manager.add_request(prompt, request_id=f"r{i}", max_new_tokens=CAP)
    outputs: dict[str, Any] = {}
    with torch.no_grad():
        while processor.prepare_next_batch():
            processor._generation_step(model)
            processor.update_batch()
            while (output := manager.get_result(timeout=0)) is not None:
                outputs[output.request_id] = output
    scheduler = processor.scheduler
    manager.destroy()
    return scheduler, outputs


@pytest.mark.parametrize("policy", ["amin", "amin-survival", "fcfs", "sjf"])
def test_tokens_are_those_of_an_engine_with_room(model: Any, prompts: list[list[int]], policy: str) -> None:
    """Greedily, in single precision, whatever is evicted; and little memory does make the policy evict."""
    alone, expected = drive(model, config_of(policy, 64), prompts)
    assert alone.runner.num_evictions == 0
    tight, outputs = drive(model, config_of(policy, 10), prompts)
    assert len(outputs) == len(prompts)
    assert tight.runner.num_evictions > 0
    assert not len(tight.runner)
    for name, output in outputs.items():
        assert output.generated_tokens == expected[name].generated_tokens
        assert output.prompt_ids == prompts[int(name[1:])]


def test_generate_batch_follows_the_policy_with_a_real_predictor(
    model: Any, prompts: list[list[int]], exports: dict[str, Path]
) -> None:
    """Three lines of a user: the configuration, and every answer complete."""
    from pipelines.plug_ins import continuous_batching_config

    config = continuous_batching_config(
        exports["fp32"], Words(), "amin", num_blocks=10, page_size=PAGE_SIZE, timeout=30.0, max_batch_tokens=48
    )
    outputs = model.generate_batch(
        prompts, generation_config=generation_config(), continuous_batching_config=config, warmup=False
    )
    assert len(outputs) == len(prompts)
    assert all(output.error is None for output in outputs.values())
    _, expected = drive(model, config_of("fcfs", 64), prompts)
    assert sorted(output.generated_tokens for output in outputs.values()) == sorted(
        output.generated_tokens for output in expected.values()
    )


def test_a_request_that_can_never_run_fails_alone(model: Any, prompts: list[list[int]]) -> None:
    """With a reason; the others finish."""
    _, outputs = drive(model, config_of("amin", 5), [list(range(4, 60)), *prompts[:2]])
    assert "exceed the KV cache of 5 blocks of 16" in str(outputs["r0"].error)
    assert all(outputs[name].error is None for name in ("r1", "r2"))


def test_a_cancelled_request_is_forgotten(model: Any, prompts: list[list[int]]) -> None:
    """Waiting, running or not yet predicted."""
    import torch

    config = config_of("amin", 10)
    manager = model.init_continuous_batching(generation_config=generation_config(), continuous_batching_config=config)
    processor = manager.batch_processor = manager._create_batch_processor()
    for i, prompt in enumerate(prompts):
        manager.add_request(prompt, request_id=f"r{i}", max_new_tokens=CAP)
    done = set()
    with torch.no_grad():
        for step in range(1000):
            if not processor.prepare_next_batch():
                break
            processor._generation_step(model)
            processor.update_batch()
            if step == 3:
                active, waiting = processor.scheduler.active_requests, processor.scheduler.waiting_requests
                cancelled = [*list(active)[:2], *list(waiting)[:2]]  # one may be active while others are predicted
                for name in cancelled:
                    processor.scheduler.set_request_cancellation(name)
            while (output := manager.get_result(timeout=0)) is not None:
                done.add(output.request_id)
    assert done == {f"r{i}" for i in range(len(prompts))} - {*cancelled}
    assert not len(processor.scheduler.runner)
    manager.destroy()


@pytest.mark.parametrize("policy", ["amin", "amin-survival"])
def test_the_name_of_a_cancelled_request_can_be_used_again(model: Any, policy: str) -> None:
    """Even of the only one, after which the engine asks for no batch: the new one is another request."""
    import torch

    config = config_of(policy, 6)
    manager = model.init_continuous_batching(generation_config=generation_config(), continuous_batching_config=config)
    processor = manager.batch_processor = manager._create_batch_processor()
    outputs: dict[str, Any] = {}

    def run() -> None:
        with torch.no_grad():
            while processor.prepare_next_batch():
                processor._generation_step(model)
                processor.update_batch()
                if not outputs:
                    outputs["again"] = None
                    processor.scheduler.set_request_cancellation("again")

    manager.add_request(list(range(4, 14)), request_id="again", max_new_tokens=CAP)
    run()
    assert not len(processor.scheduler.runner)
    manager.add_request(list(range(4, 84)), request_id="again", max_new_tokens=CAP)
    manager.add_request(list(range(4, 14)), request_id="other", max_new_tokens=10)
    run()
    while (output := manager.get_result(timeout=0)) is not None:
        outputs[output.request_id] = output
    assert "exceed the KV cache of 6 blocks" in str(outputs["again"].error)
    assert outputs["other"].error is None
    assert not len(processor.scheduler.runner)
    manager.destroy()


def test_settings_that_would_break_the_accounting_are_refused(model: Any, exports: dict[str, Path]) -> None:
    """Shared blocks, an unknown policy, one that knows the future, a predictor that is not there."""
    from pipelines.plug_ins import continuous_batching_config

    def configured(folder: Path, policy: str = "amin", **settings: Any) -> Any:
        return continuous_batching_config(folder, Words(), policy, num_blocks=8, **settings)

    with pytest.raises(InputError, match="allow_block_sharing"):
        drive(model, configured(exports["fp32"], allow_block_sharing=True, max_batch_tokens=48), [[5, 6]])
    for policy in ("amim", "hindsight"):
        with pytest.raises(InputError, match=policy):
            configured(exports["fp32"], policy)
    with pytest.raises(PredictorInputError, match="nowhere"):
        configured(Path("nowhere"))


def wait_until_gone(threads: set[threading.Thread]) -> None:
    """Wait for the threads that have been started since; they end by themselves."""
    gc.collect()
    for thread in set(threading.enumerate()) - threads:
        if thread.name.startswith("amin-"):
            thread.join(60.0)
            assert not thread.is_alive()


def test_no_thread_outlives_the_engine_that_it_predicts_for(model: Any, exports: dict[str, Path]) -> None:
    """Neither after a call of `generate_batch`, nor where an engine starts anew, nor after the configuration."""
    from pipelines.plug_ins import continuous_batching_config

    before = set(threading.enumerate())
    config = continuous_batching_config(
        exports["fp32"], Words(), num_blocks=10, page_size=PAGE_SIZE, timeout=30.0, max_batch_tokens=48
    )
    started, (first, _) = set(threading.enumerate()), drive(model, config, [[5, 6, 7]])
    assert set(threading.enumerate()) > started
    first.reset()
    wait_until_gone(started)
    first.predictions.add(Request("r", 3, 10), [5, 6, 7])
    first.predictions.take(wait=True)
    del first
    wait_until_gone(started)
    del config
    wait_until_gone(before)


def test_a_predictor_goes_with_the_last_configuration_that_has_it(exports: dict[str, Path]) -> None:
    """Also with a copy, as transformers makes them; a new configuration at each call must not fill the memory."""
    import copy

    from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING

    from pipelines.plug_ins import continuous_batching_config

    before = set(SCHEDULER_MAPPING)
    config = continuous_batching_config(exports["fp32"], None, num_blocks=64)
    copies = [copy.copy(config), copy.deepcopy(config)]
    name = str(config.scheduler_type)
    del config
    gc.collect()
    assert name in SCHEDULER_MAPPING
    copies.clear()
    gc.collect()
    assert set(SCHEDULER_MAPPING) == before
