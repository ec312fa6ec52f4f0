"""What of a probe in vLLM needs no vLLM: the engines that are refused, and renewals from a worker's report."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from predictor.errors import InputError
from scheduler.forecast import Forecast
from scheduler.request import Request


def engine(**changes: Any) -> Any:
    """What vLLM's configuration says of an engine in which states can be read, with changes."""
    parallel = {
        "pipeline_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "prefill_context_parallel_size": 1,
        "enable_dbo": False,
        "tensor_parallel_size": 2,
    }
    whole = dict.fromkeys(("speculative_config", "lora_config", "kv_transfer_config", "quantization"))
    given = whole | parallel | {"scheduler_cls": "ours"} | changes
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(scheduler_cls=given["scheduler_cls"]),
        parallel_config=SimpleNamespace(**{key: given[key] for key in parallel}),
        model_config=SimpleNamespace(quantization=given["quantization"]),
        **{key: given[key] for key in ("speculative_config", "lora_config", "kv_transfer_config")},
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"decode_context_parallel_size": 2}, "context parallelism"),
        ({"enable_dbo": True}, "--enable-dbo"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"lora_config": object()}, "LoRA"),
        ({"kv_transfer_config": object()}, "KV connector"),
        ({"quantization": "awq"}, "quantised as awq"),
        ({"scheduler_cls": None}, "add --scheduler-cls pipelines.vllm_scheduler.PredictingScheduler"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_engines_without_the_states_are_refused_in_a_line(change: dict[str, Any], reason: str) -> None:
    """It names what does not go together; tensor parallelism does."""
    from pipelines.probe.vllm_probe import require_engine

    require_engine(engine())
    with pytest.raises(InputError, match=reason) as error:
        require_engine(engine(**change))
    assert str(error.value).startswith("additional_config: amin: probe: ")
    assert "\n" not in str(error.value)


def test_a_report_becomes_renewals(make_probe: Callable[..., Path], exports: dict[str, Path]) -> None:
    """A logit that is no number leaves the request out; in a mixture one without a forecast goes by the probe alone."""
    from pipelines.probe.renewed_bounds import RenewedBounds
    from pipelines.probe.vllm_probe import WorkerRenewals
    from predictor.probe.probe import Probe

    probe = Probe.load(make_probe(mixed_with=exports["fp32"]))
    mixed, alone = (WorkerRenewals(RenewedBounds(probe, 0.5, is_mixed=is_mixed)) for is_mixed in (True, False))
    logits = np.random.default_rng(0).normal(size=(3, probe.bins.num_bins)).astype(np.float32)
    logits[1, 3] = np.nan
    forecast = Forecast(np.array([0, 8, 500]), np.array([1.0, 0.4, 0.0]))
    requests = [Request(f"r{i}", 9, 60, forecast=None if i == 2 else forecast) for i in range(3)]
    got = dict(mixed.renew([4, 5, 6], [0, 0, 3], logits, requests))
    plain = dict(alone.renew([4, 5, 6], [0, 0, 3], logits, requests))
    assert set(got) == set(plain) == {4, 6}
    assert mixed.num_failed == 1
    assert got[6].num_generated == 4
    np.testing.assert_allclose(got[6].forecast.survival, plain[6].forecast.survival)
    assert got[6].output_len_lower_bound == plain[6].output_len_lower_bound
    assert not np.allclose(got[4].forecast.survival, plain[4].forecast.survival)
    later = dict(mixed.renew([6], [5], logits[2:], requests[2:]))[6]
    assert later.output_len_lower_bound == max(got[6].output_len_lower_bound, 7)
    mixed.start(6)
    assert dict(mixed.renew([6], [5], logits[2:], requests[2:]))[6].output_len_lower_bound >= 7


def test_weights_that_cannot_be_had_are_one_line(monkeypatch: pytest.MonkeyPatch, chat_model: Path) -> None:
    """A folder is read where it is; of a hub model the files that the engine has fetched."""
    import huggingface_hub

    from pipelines.probe.vllm_probe import folder_of

    assert folder_of(SimpleNamespace(model=str(chat_model), revision=None)) == chat_model

    def fail(*arguments: Any, **options: Any) -> str:
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=r"weights of own/model cannot be read \(no network at all\)"):
        folder_of(SimpleNamespace(model="own/model", revision=None))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *arguments, **options: str(chat_model))
    assert folder_of(SimpleNamespace(model="own/model", revision=None)) == chat_model
