"""What the vLLM plug-in is told: `--additional-config '{"amin": {...}}'` and two environment variables."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from scheduler.deployments.deployment import read_deployment
from scheduler.errors import InputError
from scheduler.policies import make_policy
from scheduler.policy import Policy
from scheduler.worker import Worker

Mode = Literal["on", "shadow", "off"]

DEFAULT_POLICY = "amin-survival"
DEFAULT_OPTIONS: Mapping[str, Mapping[str, Any]] = {"amin-survival": {"pack_level": 0.1, "reserve_sd": 0.0}}
"""Where a policy differs from its own defaults. vLLM finds the blocks of an evicted request in its prefix cache: room
that is left free costs more than an eviction (docs/decisions.md)."""
CHILD = re.compile(r"\d+_(.+)", re.DOTALL)
"""Name of one of several answers (`n` > 1) in vLLM: its number, and the name of the request."""
PREDICTION_KEYS = ("predictor", "tokenizer", "model", "tau", "timeout", "state", "probe", "renew_every")
"""Keys under "amin" that are not options of the policy but of what predicts, at arrival and while a request runs."""
TEXTS = ("predictor", "tokenizer", "model", "state", "probe")


def group_and_class(request_id: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a request belongs to and its class: the extra arguments `group` and `class`, "" for none.

    Without a group, several answers to one prompt are one (vLLM's `ParentRequest.get_child_info` names them).
    """
    group, service_class = (arguments.get(name) for name in ("group", "class"))
    if group is None and (child := CHILD.fullmatch(request_id)) is not None:
        group = child[1]
    return ("" if group is None else str(group)), ("" if service_class is None else str(service_class))


@dataclass(frozen=True, slots=True)
class Settings:
    """What stands under "amin" in vLLM's additional configuration, sorted.

    Attributes:
        mode: `on`; `shadow` predicts and counts and decides nothing; `off` leaves everything to vLLM.
        policy: A name of `scheduler.policies`.
        seed: Of the policy's random ties.
        options: Further options of the policy.
        deployment: Name or file of the deployment that the server is: what its iterations take, for policies that weigh
            prefill against decoding. "" where that is not known; memory and limits are always vLLM's own.
        prediction: The keys of `PREDICTION_KEYS` that were given.
    """

    mode: Mode = "on"
    policy: str = DEFAULT_POLICY
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    prediction: Mapping[str, Any] = field(default_factory=dict)
    deployment: str = ""

    @classmethod
    def read(cls, additional_config: Any, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Return the settings; AMIN_DISABLE=1 wins over all of them, so that nothing of them need be right.

        AMIN_POLICY names the policy where "policy" does not.

        Raises:
            InputError: "amin" is no object, "shadow" is not true or false, "seed" is not an int, "policy" or
                "deployment" is no text, or a key of what predicts has a value of another kind.
        """
        if environ.get("AMIN_DISABLE", "0") not in ("", "0"):
            return cls(mode="off")
        given = additional_config.get("amin", {}) if isinstance(additional_config, Mapping) else {}
        if not isinstance(given, Mapping):
            raise InputError(f"additional_config: amin: {given!r}, must be an object such as {{}}")
        rest = dict(given)
        shadow, seed = rest.pop("shadow", False), rest.pop("seed", 0)
        if not isinstance(shadow, bool):
            raise InputError(f"additional_config: amin: shadow: {shadow!r}, must be true or false")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"additional_config: amin: seed: {seed!r}, must be an integer >= 0")
        deployment = rest.pop("deployment", "")
        if not isinstance(deployment, str):
            raise InputError(f"additional_config: amin: deployment: {deployment!r}, must be a name or a file")
        prediction = _prediction(rest)
        policy = rest.pop("policy", environ.get("AMIN_POLICY", DEFAULT_POLICY))
        if not isinstance(policy, str):
            raise InputError(f"additional_config: amin: policy: {policy!r}, must be a name")
        return cls("shadow" if shadow else "on", policy, seed, rest, prediction, deployment)

    def make_policy(self, worker: Worker) -> Policy:
        """Return the policy, new, on vLLM's memory.

        Raises:
            InputError: No policy has that name or one of the options, it needs true lengths, or there is no such
                deployment.
        """
        if self.deployment:
            worker = replace(worker, cost_model=read_deployment(self.deployment).clock)
        options = {**DEFAULT_OPTIONS.get(self.policy, {}), **self.options}
        return make_policy(self.policy, worker, np.random.default_rng(self.seed), **options)


def _prediction(rest: dict[str, Any]) -> dict[str, Any]:
    """Take the keys of `PREDICTION_KEYS` out of `rest`, and return those with a value; null counts as not given."""
    taken = {key: rest.pop(key) for key in PREDICTION_KEYS if key in rest}
    given = {key: value for key, value in taken.items() if value is not None}
    for key, value in given.items():
        field_name = f"additional_config: amin: {key}: {value!r}"
        if key in TEXTS and not (isinstance(value, str | os.PathLike) and str(value).strip()):
            raise InputError(f"{field_name}, must be a text, and not an empty one")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if key == "tau" and not (is_number and 0 < value < 1):
            raise InputError(f"{field_name}, must be a number between 0 and 1")
        if key == "timeout" and not (is_number and 0 <= value < math.inf):
            raise InputError(f"{field_name}, must be a number of seconds >= 0")
    return given
