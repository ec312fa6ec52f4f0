"""The study of what the proxy adds: its arithmetic, apart from servers."""

import numpy as np

from pipelines.studies.proxy_time import WAYS, summarize


def test_what_is_added_is_counted_pair_by_pair() -> None:
    """A slow moment that hits all ways alike adds nothing."""
    direct = np.array([0.001, 0.050, 0.002])
    measured = {"seconds": [direct, direct + 0.003, direct + 0.001], "hinted": 2 / 3, "processor_seconds": 0.002}
    figures = summarize(measured)
    assert list(figures["ms"]) == list(WAYS)
    assert all(abs(value - 3) < 1e-9 for value in figures["more_than_direct_ms"]["proxied"].values())
    assert abs(figures["more_than_direct_ms"]["proxied, nothing to predict"]["p99"] - 1) < 1e-9
    assert figures["requests"] == 3
