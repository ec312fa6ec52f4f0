"""Iterations of a deployment that is not at hand: NVIDIA AISimulate's measured kernels, asked in their environment."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.deployment.fit import Floats
from scheduler.errors import InputError

SCRIPT = Path(__file__).with_name("kernels.py")
INSTALL = "make .venv-aisimulate/installed"


@dataclass(frozen=True, slots=True)
class Kernels:
    """What AISimulate knows of a deployment.

    Attributes:
        kv_tokens: Its estimate of what the KV cache of a replica holds.
        engine: Name and version of the engine whose kernels were measured.
        source: Where the figures come from, for the file.
        iterations: Seconds, prefill tokens, decoding requests and KV tokens, shape [n, 4].
    """

    kv_tokens: int
    engine: str
    source: str
    iterations: Floats


def ask(python: Path, query: Mapping[str, Any]) -> Kernels:
    """Return what AISimulate says of a deployment.

    Args:
        python: Interpreter of the environment that it is installed in.
        query: model, hardware, engine, tensor_parallel, block_size, max_running, max_batch_tokens, and whether
            prefill and decoding of an iteration are two passes (`apart`).

    Raises:
        InputError: There is no such environment, or AISimulate does not know the deployment.
    """
    if not python.is_file():
        raise InputError(f"--python: {python} is no interpreter with AISimulate; {INSTALL} makes one")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, SCRIPT], input=json.dumps(query), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"AISimulate has no kernels for {query['model']} on {query['hardware']}: {reason}")
    found = json.loads(done.stdout)
    return Kernels(
        found["kv_tokens"],
        f"{query['engine']} {found['engine_version']}",
        f"AISimulate {found['aisimulate']} (NVIDIA, Apache-2.0): kernels measured on the card; KV memory by its "
        f"estimate at 0.9 of the card: {found['kv_bytes_per_token']} bytes a token and card ({found['kv_dtype']}) "
        f"after {found['weights_bytes'] / 1e9:.1f} GB of weights; slots and tokens an iteration as asked for",
        np.array(found["iterations"]),
    )
