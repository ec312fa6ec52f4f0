import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from scheduler.cost_model import CostModel
from scheduler.deployments.deployment import Deployment, bundled_names, read_deployment
from scheduler.deployments.iteration_times import iteration_seconds
from scheduler.errors import InputError

CLOCK_TERMS = [field.name for field in fields(CostModel)]


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_deployments_read_and_say_where_they_come_from(name: str) -> None:
    """Each has a clock with its error, a source and a date, and is the same after a round trip through JSON."""
    deployment = read_deployment(name)
    assert deployment.clock_error is not None
    assert 0 < deployment.clock_error.median <= deployment.clock_error.p90 <= deployment.clock_error.worst < 0.5
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", deployment.date)
    assert "AISimulate" in deployment.source
    assert Deployment.from_json(json.loads(json.dumps(deployment.to_json()))) == deployment


def test_what_is_bundled() -> None:
    """An 8B on three cards, a 70B on eight, four and one, a 32B, mixtures of experts and a card of 24 GB are there."""
    deployments = {name: read_deployment(name) for name in bundled_names()}
    cards = {(d.hardware, d.tensor_parallel, d.replicas) for d in deployments.values() if "70B" in d.model}
    assert cards == {("h100_sxm", 8, 1), ("h100_sxm", 4, 2), ("h200_sxm", 4, 1), ("h200_sxm", 1, 1)}
    assert {d.hardware for d in deployments.values() if "8B" in d.model} == {"a100_sxm", "h100_sxm", "l40s", "b60"}
    assert deployments["llama-3.1-8b-h100"].kv_tokens == 432_992
    assert len(deployments) >= 8


def test_faster_cards_have_faster_clocks() -> None:
    """An iteration of 128 requests of 500 tokens takes longer on an A100 than on an H100, and longest on an L40S."""
    work = np.array([[0.0, 128.0, 64_000.0]])
    clocks = [read_deployment(f"llama-3.1-8b-{card}").clock for card in ("h100", "a100", "l40s")]
    seconds = [float(iteration_seconds(clock, work)[0]) for clock in clocks]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_tokens": 0}, "kv_tokens is 0"),
        ({"kv_tokens": 8}, "must hold a block of 16"),
        ({"max_running": True}, "max_running is True"),
        ({"prefix_caching": "yes"}, "prefix_caching is 'yes'"),
        ({"slots": 3}, "unknown field 'slots'"),
        ({"clock": {}}, "clock lacks the field 'seconds_per_iteration'"),
        ({"clock": {"seconds_per_iteration": 1}}, "clock lacks the field 'seconds_per_prefill_token'"),
        ({"clock": dict.fromkeys(CLOCK_TERMS, -1)}, "seconds_per_iteration is -1"),
        ({"model": ""}, "model is ''"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """The error names the file and the field."""
    path = tmp_path / "d.json"
    path.write_text(json.dumps(read_deployment(bundled_names()[0]).to_json() | change))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_deployment(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    """The first missing field is named; a name that is no file lists those that are bundled."""
    path = tmp_path / "d.json"
    value = read_deployment(bundled_names()[0]).to_json()
    del value["max_running"]
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match="lacks the field 'max_running'"):
        read_deployment(str(path))
    with pytest.raises(InputError, match="llama-3"):
        read_deployment("llama-3.1-8b-h101")
