"""`amin evaluate`: with an engine of ours, or by asking servers that run elsewhere; each imported when it is needed."""

from pipelines.settings.evaluate import EvaluateSettings


def run(settings: EvaluateSettings) -> None:
    """Generate here under every policy, or with `--endpoint` measure one server or two from outside."""
    if settings.servers.endpoint is None:
        from pipelines.evaluate.stage import run as generate  # torch

        generate(settings)
    else:
        from pipelines.evaluate.endpoint.stage import run as ask  # aiohttp

        ask(settings)
