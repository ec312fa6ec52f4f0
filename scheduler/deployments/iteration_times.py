"""What a clock says of many iterations."""

import numpy as np
from numpy.typing import NDArray

from scheduler.cost_model import CostModel

Floats = NDArray[np.float64]


def iteration_seconds(clock: CostModel, work: Floats) -> Floats:
    """Return what iterations take, shape [n].

    Args:
        clock: Of the deployment.
        work: Prefill tokens, decoding requests and KV tokens of each, shape [n, 3].
    """
    each = (clock.seconds_per_prefill_token, clock.seconds_per_decoding_request, clock.seconds_per_kv_token)
    once = clock.seconds_per_prefill * (work[:, 0] > 0)
    return np.asarray(clock.seconds_per_iteration + work @ np.array(each) + once, dtype=np.float64)
