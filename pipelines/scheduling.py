"""`scheduling.json`: what `amin tune` chose for a policy, in the folder of the predictor that it was chosen with."""

from pathlib import Path
from typing import Any

from scheduler.errors import InputError
from scheduler.json_file import read_json

FILE_NAME = "scheduling.json"


def policy_options(path: Path | None, name: str) -> dict[str, Any]:
    """Return the arguments that a tuned policy is built with; none for one that the file does not name.

    Args:
        path: The file, or the folder that has it; None for none.
        name: A key of `scheduler.policies.POLICIES`.

    Raises:
        InputError: The file is missing or malformed, or names an option that the policy does not have.
    """
    import numpy as np

    from scheduler.kv_cache import KvCache
    from scheduler.policies import make_policy
    from scheduler.worker import Worker

    if path is None:
        return {}
    options = _entry(path, name).get("options", {})
    try:
        if not isinstance(options, dict):
            raise InputError(f"options of {name} must be an object, not {options!r}")
        make_policy(name, Worker(KvCache(1024, 16)), np.random.default_rng(0), output_lens=[], **options)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return dict(options)


def tuned_tau(path: Path) -> float | None:
    """Return the tau chosen for the lower bounds of `amin`, or None; InputError as `policy_options`."""
    tau = _entry(path, "amin").get("tau")
    if tau is not None and (isinstance(tau, bool) or not isinstance(tau, int | float) or not 0 < tau < 1):
        raise InputError(f"{path}: tau of amin is {tau!r}, must be a number between 0 and 1")
    return tau


def _entry(path: Path, name: str) -> dict[str, Any]:
    from scheduler.policies import POLICIES

    file = path / FILE_NAME if path.is_dir() else path
    value = read_json(file, "amin tune writes it")
    policies = value.get("policies") if isinstance(value, dict) else None
    if not isinstance(policies, dict) or not all(isinstance(entry, dict) for entry in policies.values()):
        raise InputError(f"{file}: must be an object with policies, as amin tune writes it")
    if unknown := sorted(set(policies) - set(POLICIES)):
        raise InputError(f"{file}: unknown policy {unknown[0]!r}; choose from {', '.join(POLICIES)}")
    return dict(policies.get(name, {}))
