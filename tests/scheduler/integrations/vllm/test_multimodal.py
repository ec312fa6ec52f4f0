"""Requests with images or sound: vLLM's budget of encoder tokens an iteration, and its cache of encoder outputs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="make test-vllm has an environment with vLLM")

from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

from scheduler.integrations.vllm_requests import shared_blocks

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's, not ours

IMAGE = 16
"""Tokens of an image, in the prompt and for the encoder."""


def _images(*places: tuple[str, int]) -> dict[str, Any]:
    """Return images by name and offset in the prompt."""
    spec = [
        MultiModalFeatureSpec(
            data=None, modality="image", identifier=name, mm_position=PlaceholderRange(offset=offset, length=IMAGE)
        )
        for name, offset in places
    ]
    return {"mm_features": spec}


def _engine(make_engine: Callable[..., Any], num_blocks: int, *, budget: int, cache: int, **options: Any) -> Any:
    """Return an engine whose encoder takes so many tokens an iteration, and whose outputs have so much room."""
    engine = make_engine(num_blocks, options.pop("depth", 1), **options)
    engine.scheduler.max_num_encoder_input_tokens = budget
    engine.scheduler.encoder_cache_manager = EncoderCacheManager(cache_size=cache)
    return engine


def _add_some(engine: Any, count: int, seed: int) -> None:
    """Prompts of words alone, of an image and words, of two images, one of which many others have, too."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        length = int(rng.integers(1, 60))
        images = [_images(), _images((f"i{i}", 4)), _images((f"i{i}", 4), ("common", 30))][i % 3] if i % 3 else {}
        engine.add(f"r{i}", 50, length, facts=images, output_len_lower_bound=1 + length // 2)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["fcfs", "amin", "amin-survival"])
def test_the_encoder_is_given_no_more_than_it_takes(make_engine: Callable[..., Any], policy: str, depth: int) -> None:
    """One image an iteration, room for two, tight memory: every answer is whole, and nothing is left in the cache."""
    engine = _engine(make_engine, 14, budget=IMAGE, cache=2 * IMAGE, policy=policy, depth=depth)
    _add_some(engine, 30, 5)
    for _ in range(5_000):
        if not engine.scheduler.has_unfinished_requests():
            break
        output = engine.step()
        assert sum(map(len, output.scheduled_encoder_inputs.values())) <= 1
        engine.check_memory()
        engine.check_counts()
    engine.run()
    engine.check_tokens(engine.requests)
    manager = engine.scheduler.encoder_cache_manager
    assert manager.num_freeable_slots == manager.cache_size
    assert engine.scheduler.metrics.failures == 0


@pytest.mark.parametrize("caching", [False, True])
def test_images_take_no_longer_than_with_vllms_own_scheduler(
    make_engine: Callable[..., Any], vllms_own: Any, caching: bool
) -> None:
    """In order of arrival both serve the same in about as many iterations."""
    steps = []
    for options in ({"kind": vllms_own}, {"policy": "fcfs"}):
        vllm = {"enable_prefix_caching": caching}
        engine = _engine(make_engine, 20, budget=IMAGE, cache=2 * IMAGE, vllm=vllm, **options)
        _add_some(engine, 40, 6)
        engine.run(check=False)
        engine.check_tokens(engine.requests)
        steps.append(engine.num_steps)
    assert steps[1] <= 1.05 * steps[0]


def test_other_images_are_other_blocks(make_engine: Callable[..., Any]) -> None:
    """Prompts with the same placeholders share the blocks before a different image, and all those of the same one."""
    engine = _engine(make_engine, 40, budget=64, cache=64, vllm={"enable_prefix_caching": True})
    for i, name in enumerate(["cat", "cat", "dog"]):
        engine.add(f"r{i}", list(range(65)), 5, facts=_images((name, 16)), output_len_lower_bound=4)
    cat, same, dog = (shared_blocks(request, 16, 16) for request in engine.requests.values())
    assert len(cat) == 4
    assert same == cat
    assert [a == b for a, b in zip(cat, dog, strict=True)] == [True, False, False, False]
    engine.run()
    engine.check_tokens(engine.requests)


def test_a_client_that_leaves_frees_its_images(make_engine: Callable[..., Any], abort: Callable[..., Any]) -> None:
    """In the midst of its prefill, with its image in the cache, or queued."""
    engine = _engine(make_engine, 14, budget=IMAGE, cache=IMAGE)
    for i in range(3):
        engine.add(f"r{i}", 60, 20, facts=_images((f"i{i}", 40)), output_len_lower_bound=10)
    engine.step()
    abort(engine, ["r0", "r1"])
    engine.run()
    engine.check_tokens(["r2"])
    manager = engine.scheduler.encoder_cache_manager
    assert manager.num_freeable_slots == manager.cache_size
