"""What an iteration takes where a server runs reaches the policy that decides for it."""

import pytest

from scheduler.deployments.deployment import read_deployment
from scheduler.errors import InputError
from scheduler.integrations.vllm_settings import Settings
from scheduler.kv_cache import KvCache
from scheduler.worker import Worker


def test_the_clock_of_a_deployment_is_the_workers() -> None:
    """Memory and limits stay those of the engine."""
    worker = Worker(KvCache(100, 16), resume=True, max_running=7)
    settings = Settings.read({"amin": {"deployment": "llama-3.1-8b-h100", "policy": "amin-survival"}}, {})
    made = settings.make_policy(worker).worker
    assert made.cost_model == read_deployment("llama-3.1-8b-h100").clock
    assert (made.kv_cache, made.max_running) == (worker.kv_cache, 7)
    assert Settings.read({"amin": {}}, {}).make_policy(worker).worker.cost_model is None


@pytest.mark.parametrize("name", [3, "no-such-card"])
def test_a_wrong_deployment_is_named(name: object) -> None:
    """A value that is no text, or a name that no deployment has."""
    with pytest.raises(InputError, match=r"deployment|no-such-card"):
        Settings.read({"amin": {"deployment": name}}, {}).make_policy(Worker(KvCache(100, 16), resume=True))
