"""A replica of a deployment, for the simulator."""

from scheduler.deployments.deployment import Deployment
from scheduler.kv_cache import KvCache
from scheduler.worker import Worker


def worker_of(deployment: Deployment) -> Worker:
    """Return one replica; as in every engine of today, an evicted request keeps its generated tokens."""
    return Worker(
        KvCache.from_budget(deployment.kv_tokens, deployment.block_size),
        resume=True,
        max_running=deployment.max_running,
        max_batch_tokens=deployment.max_batch_tokens,
        cost_model=deployment.clock,
        prefix_caching=deployment.prefix_caching,
    )
