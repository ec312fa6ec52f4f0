"""Make a deployment file: clock, KV tokens and limits of a served model on given cards."""

from datetime import UTC, datetime

from pipelines.deployment.fit import Floats, fit_clock
from pipelines.deployment.iteration_logs import read_iterations
from pipelines.deployment.measured_kernels import ask
from pipelines.files import write_json
from pipelines.settings.deployment import DeploymentSettings
from scheduler.deployments.deployment import Deployment
from scheduler.errors import InputError


def run(settings: DeploymentSettings) -> None:
    """Fit the clock, write the file, say how good the fit is.

    Raises:
        InputError: AISimulate does not know the deployment, or the log has no iterations.
    """
    kv_tokens, engine, source, iterations = _found(settings)
    clock, error = fit_clock(iterations)
    deployment = Deployment(
        model=settings.served_as or settings.model,
        hardware=settings.hardware,
        engine=engine,
        tensor_parallel=settings.tp,
        kv_tokens=kv_tokens,
        block_size=settings.block_size,
        max_running=settings.max_running,
        max_batch_tokens=settings.max_batch_tokens,
        prefix_caching=settings.prefix_caching,
        clock=clock,
        source=source,
        date=datetime.now(UTC).date().isoformat(),
        clock_error=error,
        replicas=settings.replicas,
    )
    write_json(settings.out, deployment.to_json())
    print(f"{settings.out}: {deployment.model} on {deployment.num_cards} x {deployment.hardware}, {engine}")
    print(f"KV cache {kv_tokens:,} tokens a replica, {settings.max_running} slots")
    print(
        f"an iteration: {clock.seconds_per_iteration * 1e3:.2f} ms, {clock.seconds_per_decoding_request * 1e6:.1f} "
        f"us a decoding request, {clock.seconds_per_kv_token * 1e9:.1f} ns a KV token; where it prefills, "
        f"{clock.seconds_per_prefill * 1e3:.2f} ms and {clock.seconds_per_prefill_token * 1e6:.1f} us a token"
    )
    print(
        f"the clock is off by {error.median:.1%} in half of {error.num_iterations} iterations, by {error.p90:.1%} "
        f"in nine of ten, by {error.worst:.1%} at most"
    )


def _found(settings: DeploymentSettings) -> tuple[int, str, str, Floats]:
    """Return KV tokens, engine, source and iterations of what the settings name."""
    if settings.iterations is not None:
        log = read_iterations(settings.iterations, settings.kv_tokens)
        kv_tokens = settings.kv_tokens or log.kv_tokens
        if kv_tokens is None:
            raise InputError(f"--kv-tokens: {settings.iterations} does not say what the KV cache holds; give it")
        return kv_tokens, settings.engine, f"{log.source}: {settings.iterations.name}", log.iterations
    query = {
        "model": settings.model,
        "hardware": settings.hardware,
        "engine": settings.engine,
        "tensor_parallel": settings.tp,
        "block_size": settings.block_size,
        "max_running": settings.max_running,
        "max_batch_tokens": settings.max_batch_tokens,
        "apart": False,
    }
    kernels = ask(settings.python, query)
    source = kernels.source
    if settings.served_as is not None:
        source += f"; the kernels are those of {settings.model}, the same architecture"
    return settings.kv_tokens or kernels.kv_tokens, kernels.engine, source, kernels.iterations
