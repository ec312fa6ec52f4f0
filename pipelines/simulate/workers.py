"""The worker that options describe, and what is said of it."""

from pipelines.settings.worker import OF_DEPLOYMENT, WorkerSettings
from scheduler.kv_cache import KvCache
from scheduler.worker import Worker


def make_worker(settings: WorkerSettings) -> Worker:
    """Return one replica; InputError for one out of its range."""
    kv_cache = KvCache.from_budget(settings.tokens(), settings.block_size)
    return Worker(
        kv_cache,
        resume=settings.eviction == "resume",
        max_running=settings.max_running,
        watermark_blocks=int(settings.watermark * kv_cache.num_blocks),
        max_batch_tokens=settings.max_batch_tokens,
        cost_model=settings.clock(),
        prefix_caching=settings.prefix_caching,
    )


def described(settings: WorkerSettings) -> str:
    """Return the worker in words: its deployment and what options say in its place, or its memory."""
    if settings.deployment is None:
        text = f"KV budget {settings.tokens():,} tokens, {settings.eviction}"
    else:
        changes = settings.overridden()
        text = settings.deployment + (f" (changed: {'; '.join(changes)})" if changes else "")
    return text + (f", {settings.replicas} replicas" if settings.replicas > 1 else "")


def unit(settings: WorkerSettings) -> str:
    """Return what times are in."""
    return "iterations" if settings.clock() is None else "seconds"


def setting(settings: WorkerSettings) -> dict[str, object]:
    """Return the worker as `results.json` has it."""
    clock = settings.deployment if settings.cost_model == OF_DEPLOYMENT else settings.cost_model
    return {
        "deployment": settings.deployment,
        "in_place_of_the_deployment": settings.overridden(),
        "kv_budget": settings.tokens(),
        "block_size": settings.block_size,
        "cost_model": clock,
        "eviction": settings.eviction,
        "prefix_caching": settings.prefix_caching,
        "limits": {name: getattr(settings, name) for name in ("max_running", "max_batch_tokens", "watermark")},
        "replicas": settings.replicas,
    }
