"""What a request is expected to take over the rest of its life: tokens, and memory over time."""

from bisect import bisect_right

import numpy as np

from scheduler.forecast import Forecast
from scheduler.latency_bounds import volume


class ExpectedWork:
    """Tokens and token-iterations of memory to come of one request, as its forecast has them.

    Serving requests in ascending expected size has the least expected sum of completion times where sizes are random
    and work is not interrupted (Rothkopf 1966); with a KV cache for a machine, the size is memory over a life.

    With s prompt tokens and S the survival of the length, what is to come after g generated tokens is
    E[sum of s + k over g < k <= length | length > g] = (integral of (s + x + 1/2) S(x) from g to the cap) / S(g), and
    the tokens are (integral of S(x)) / S(g). The integrals from each edge on are kept, so that a look-up costs no
    vector operation.
    """

    __slots__ = ("_area_beyond", "_edges", "_moment_beyond", "_num_prompt_tokens", "_survival")

    def __init__(self, forecast: Forecast, num_prompt_tokens: int, cap: float) -> None:
        """Prepare the look-up of a request that generates at most `cap` tokens."""
        last = min(cap, forecast.edges.item(-1))
        inner = int(forecast.edges.searchsorted(last))
        edges = np.append(forecast.edges[:inner], last).astype(np.float64)
        survival = np.append(forecast.survival[:inner], np.interp(last, forecast.edges, forecast.survival))
        left, right, before, after = edges[:-1], edges[1:], survival[:-1], survival[1:]
        area = (right - left) * (before + after) / 2
        moment = (right - left) * ((2 * left + right) * before + (left + 2 * right) * after) / 6
        self._area_beyond: list[float] = [*area[::-1].cumsum()[::-1].tolist(), 0.0]
        self._moment_beyond: list[float] = [*moment[::-1].cumsum()[::-1].tolist(), 0.0]
        self._edges: list[float] = edges.tolist()
        self._survival: list[float] = survival.tolist()
        self._num_prompt_tokens = num_prompt_tokens

    def spent(self, generated: int) -> float:
        """Return the token-iterations of the first `generated` tokens."""
        return volume(self._num_prompt_tokens, generated)

    def remaining(self, generated: int) -> tuple[float, float]:
        """Return the expected tokens and token-iterations after `generated` tokens, given that it has not ended.

        A request that has outlived every length of its forecast is taken to generate as many tokens again.
        """
        place = bisect_right(self._edges, generated)
        if place < len(self._edges):
            left, right = self._edges[place - 1], self._edges[place]
            before, after = self._survival[place - 1], self._survival[place]
            alive = before + (generated - left) / (right - left) * (after - before)
            if alive > 0:
                width = right - generated
                area = width * (alive + after) / 2 + self._area_beyond[place]
                moment = width * ((2 * generated + right) * alive + (generated + 2 * right) * after) / 6
                moment += self._moment_beyond[place]
                return area / alive, ((self._num_prompt_tokens + 0.5) * area + moment) / alive
        again = max(1, generated)
        return again, volume(self._num_prompt_tokens + generated, again)
