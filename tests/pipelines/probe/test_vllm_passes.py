"""A worker's passes, as vLLM's scheduler describes them: whose states are kept, what is reported, and failures."""

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

WIDTH, SIZE, WINDOW = 5, 4, 3


def output(
    new: Sequence[tuple[str, int, list[int], int]] = (),
    cached: Sequence[tuple[str, list[int] | None, int]] = (),
    resumed: Sequence[str] = (),
    finished: Sequence[str] = (),
    **lengths: int,
) -> Any:
    """A pass as vLLM's scheduler describes it: new requests by name, prompt, blocks and tokens computed before."""
    named = [
        SimpleNamespace(req_id=n, prompt_token_ids=[0] * p, prompt_embeds=None, block_ids=(b,), num_computed_tokens=c)
        for n, p, b, c in new
    ]
    more = SimpleNamespace(
        req_ids=[name for name, _, _ in cached],
        new_block_ids=[None if blocks is None else (blocks,) for _, blocks, _ in cached],
        num_computed_tokens=[computed for _, _, computed in cached],
        resumed_req_ids=set(resumed),
    )
    return SimpleNamespace(
        finished_req_ids=set(finished),
        scheduled_new_reqs=named,
        scheduled_cached_reqs=more,
        num_scheduled_tokens=lengths,
    )


def test_passes_are_followed_and_the_probe_is_read_where_it_is_due() -> None:
    """Rows are in the order of the batch; a request that comes back has other blocks; one that ended is forgotten."""
    import torch

    from pipelines.probe.vllm_passes import PassStates
    from scheduler.integrations.vllm_renewals import DUE
    from scheduler.integrations.vllm_states import BlockStates

    states = BlockStates(8, SIZE, WIDTH, WINDOW, torch.empty(0))
    passes = PassStates(states, lambda read, counts: torch.cat([read[:, 2, :1], counts.float()], dim=1))
    first = output(new=[("a", 5, [0, 1], 0), ("b", 2, [2], 0)], a=5, b=2)
    setattr(first, DUE, {"b": 7, "a": 4})
    rows = torch.arange(7.0)[:, None].expand(7, WIDTH)
    passes.after_pass(first, ["b", "a"], rows)
    reading = passes.take()
    assert reading is not None
    report = reading.report()
    assert (report.indices, report.generated, report.failure) == ((7, 4), (0, 0), "")
    assert report.logits.tolist() == [[0.5, 0.0, 2.0], [4.0, 0.0, 5.0]]
    assert report.seconds > 0
    assert passes.take() is None
    back = output(cached=[("a", [5, 6], 4)], resumed=["a"], finished=["b"], a=2)
    setattr(back, DUE, {"a": 4})
    passes.after_pass(back, ["a"], torch.full((2, WIDTH), 9.0))
    reading = passes.take()
    assert reading is not None
    report = reading.report()
    assert report.generated == (1,)
    assert report.logits.tolist() == [[4.0, 1.0, 5.0]]
    assert states.num_kept == 1
    passes.after_pass(output(finished=["a"]), [], None)
    assert states.num_kept == 0


def test_a_failure_in_the_worker_is_logged_once_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    """From then on nothing is kept, and vLLM's pass is never disturbed."""
    import torch

    from pipelines.probe.vllm_passes import PassStates
    from scheduler.integrations.vllm_states import BlockStates

    passes = PassStates(BlockStates(8, SIZE, WIDTH, WINDOW, torch.empty(0)), lambda read, counts: read)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            passes.after_pass(output(cached=[("unknown", None, 3)], unknown=1), ["unknown"], torch.ones(1, WIDTH))
    assert [record.exc_info is not None for record in caplog.records] == [True]
    reading = passes.take()
    assert reading is not None
    report = reading.report()
    assert report.failure.startswith("KeyError")
    assert passes.take() is None
