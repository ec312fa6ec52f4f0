"""LoRA adapters: vLLM's limit of how many run at once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="make test-vllm has an environment with vLLM")

from vllm.lora.request import LoRARequest

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's, not ours

POLICIES = ["fcfs", "amin", "amin-survival"]


def _with(adapter: int) -> dict[str, Any]:
    return {"lora_request": LoRARequest(f"a{adapter}", adapter, "/nowhere")} if adapter else {}


def _engine(make_engine: Callable[..., Any], num_blocks: int, max_loras: int, **options: Any) -> Any:
    vllm = {"enable_lora": True, "max_loras": max_loras, "max_cpu_loras": 4, **options.pop("vllm", {})}
    return make_engine(num_blocks, options.pop("depth", 1), vllm=vllm, **options)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("max_loras", [1, 2])
@pytest.mark.parametrize("policy", POLICIES)
def test_no_more_adapters_run_than_vllm_holds(
    make_engine: Callable[..., Any], policy: str, max_loras: int, depth: int
) -> None:
    """Three adapters and the model itself, tight memory: every answer is whole, within the limit at all times."""
    engine = _engine(make_engine, 14, max_loras, policy=policy, depth=depth)
    rng = np.random.default_rng(3)
    for i in range(32):
        length = int(rng.integers(1, 90))
        engine.add(
            f"r{i}", int(rng.integers(1, 60)), length, facts=_with(i % 4), output_len_lower_bound=1 + length // 2
        )
    while engine.scheduler.has_unfinished_requests():
        engine.step()
        engine.check_memory()
        in_use = {request.lora_request.lora_int_id for request in engine.scheduler.running if request.lora_request}
        assert len(in_use) <= max_loras
        assert engine.num_steps < 5_000, "livelock"
    engine.run()
    engine.check_tokens(engine.requests)


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_whose_adapter_has_no_room_hold_neither_slots_nor_memory(
    make_engine: Callable[..., Any], policy: str
) -> None:
    """A long answer keeps the only adapter; four for another one have the shortest bounds, and plain ones go on."""
    engine = _engine(make_engine, 14, 1, policy=policy, vllm={"max_num_seqs": 4})
    engine.add("long", 20, 90, facts=_with(1), output_len_lower_bound=80)
    engine.step()
    for i in range(4):
        engine.add(f"other{i}", 20, 5, facts=_with(2), output_len_lower_bound=2)
    for i in range(6):
        engine.add(f"p{i}", 20, 20, output_len_lower_bound=15)
    for _ in range(85):
        engine.step()
    assert {f"p{i}" for i in range(6)} == engine.ends.keys()
    engine.run()
    engine.check_tokens(engine.requests)
    assert all(engine.ends[f"other{i}"] > engine.ends["long"] for i in range(4))


@pytest.mark.parametrize("max_loras", [1, 2])
def test_adapters_take_no_longer_than_with_vllms_own_scheduler(
    make_engine: Callable[..., Any], vllms_own: Any, max_loras: int
) -> None:
    """In order of arrival both serve the same in about as many iterations."""
    steps = []
    for options in ({"kind": vllms_own}, {"policy": "fcfs"}):
        engine = _engine(make_engine, 20, max_loras, **options)
        rng = np.random.default_rng(4)
        for i in range(40):
            length = int(rng.integers(1, 60))
            engine.add(f"r{i}", 20, length, facts=_with(1 + i % 3), output_len_lower_bound=length)
        engine.run(check=False)
        engine.check_tokens(engine.requests)
        steps.append(engine.num_steps)
    assert steps[1] <= 1.05 * steps[0]


def test_the_most_urgent_request_brings_its_adapter_in(make_engine: Callable[..., Any]) -> None:
    """With `--scheduling-policy priority`, when room is found; of equally urgent ones, the first to arrive does."""
    engine = _engine(make_engine, 20, 1, vllm={"scheduling_policy": "priority"})
    for i, (adapter, priority) in enumerate([(1, 0), (2, 5), (3, 1), (4, 1)]):
        engine.add(f"a{adapter}", 20, 10, facts=_with(adapter) | {"priority": priority}, output_len_lower_bound=5 + i)
    engine.run()
    assert sorted(engine.ends, key=engine.ends.__getitem__) == ["a1", "a3", "a4", "a2"]


def test_a_client_that_leaves_frees_its_adapter(make_engine: Callable[..., Any], abort: Callable[..., Any]) -> None:
    """Whether its request runs or is kept back."""
    engine = _engine(make_engine, 14, 1)
    for i, adapter in enumerate([1, 2, 2, 3]):
        engine.add(f"r{i}", 20, 30, facts=_with(adapter), output_len_lower_bound=20)
    engine.step()
    abort(engine, ["r1", "r0"])
    engine.run()
    engine.check_tokens(["r2", "r3"])
    assert engine.ends["r2"] < engine.ends["r3"]


def test_a_session_of_vllms_own_keeps_its_adapter(
    make_engine: Callable[..., Any], streaming_chunk: Callable[..., Any]
) -> None:
    """A streamed input that the policy does not govern: others wait for its adapter, those with the same one do not."""
    engine = _engine(make_engine, 20, 1)
    engine.add("bounded", 20, 3, output_len_lower_bound=2)
    engine.add("session", 20, 40, facts=_with(1) | {"resumable": True})
    engine.add("same", 20, 5, facts=_with(1), output_len_lower_bound=4)
    engine.add("other", 20, 5, facts=_with(2), output_len_lower_bound=4)
    for _ in range(20):
        engine.step()
    assert {"same"} == engine.ends.keys() & {"same", "other"}
    streaming_chunk(engine, "session", None)
    engine.run(check=False)
    engine.check_tokens(["bounded", "same", "other"])


def test_adapters_share_no_block(make_engine: Callable[..., Any]) -> None:
    """One prompt under two adapters is stored twice, and counted twice."""
    engine = _engine(make_engine, 30, 2, vllm={"enable_prefix_caching": True})
    for i in range(4):
        engine.add(f"r{i}", list(range(49)), 5, facts=_with(1 + i % 2), output_len_lower_bound=4)
    engine.step()
    engine.step()
    assert engine.scheduler.governor.runner.policy.waiting.prefixes.num_held == 2 * 3
    engine.run()
    engine.check_tokens(engine.requests)
