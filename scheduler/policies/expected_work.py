"""What a request is expected to take over the rest of its life: tokens, and memory over time."""

import math
from array import array
from bisect import bisect_right
from functools import lru_cache

import numpy as np

from scheduler.forecast import Floats, Forecast, knots
from scheduler.latency_bounds import volume


class ExpectedWork:
    """Tokens and token-iterations of memory to come of one request, as its forecast has them.

    Serving requests in ascending expected size has the least expected sum of completion times where sizes are random
    and work is not interrupted (Rothkopf 1966); with a KV cache for a machine, the size is memory over a life.

    With s prompt tokens and S the survival of the length, what is to come after g generated tokens is
    E[sum of s + k over g < k <= length | length > g] = (integral of (s + x + 1/2) S(x) from g to the cap) / S(g), and
    the tokens are (integral of S(x)) / S(g). The integrals from each edge on are kept, so that a look-up costs no
    vector operation. All is in flat arrays, and equal edges in one: with thousands of requests, lists of numbers do not
    stay in a processor's cache.
    """

    __slots__ = ("_area_beyond", "_edges", "_fall", "_moment_beyond", "_num_prompt_tokens", "_spread")

    def __init__(self, forecast: Forecast, num_prompt_tokens: int, cap: float) -> None:
        """Prepare the look-up of a request that generates at most `cap` tokens."""
        edges, survival = knots(forecast, cap)
        left, right, before, after = edges[:-1], edges[1:], survival[:-1], survival[1:]
        area = (right - left) * (before + after) / 2
        moment = (right - left) * ((2 * left + right) * before + (left + 2 * right) * after) / 6
        self._area_beyond = _integrals_from_each(area)
        self._moment_beyond = _integrals_from_each(moment)
        self._edges = _shared(edges.tobytes())
        self._fall = array("d", (-survival).tobytes())  # negated: bisection wants what rises
        self._num_prompt_tokens = num_prompt_tokens
        self._spread = forecast.spread

    def quantile(self, level: float, generated: int = 0) -> float:
        """Return the quantile at `level` of the length, cut at the cap, given that it exceeds `generated` tokens.

        As `Forecast.conditional_quantile`, on arrays that are quick to ask for one number.
        """
        edges, fall = self._edges, self._fall
        place = bisect_right(edges, generated)
        if place == len(edges):
            return generated / math.pow(1.0 - level, self._spread)
        left, before = edges[place - 1], fall[place - 1]
        alive = before + (generated - left) / (edges[place] - left) * (fall[place] - before)
        if alive >= 0:
            return generated / math.pow(1.0 - level, self._spread)
        target = (1.0 - level) * alive
        right = bisect_right(fall, target, place)
        if right == len(edges):
            return edges[-1]
        left, before = edges[right - 1], fall[right - 1]
        return left + (target - before) / (fall[right] - before) * (edges[right] - left)

    def spent(self, generated: int) -> float:
        """Return the token-iterations of the first `generated` tokens."""
        return volume(self._num_prompt_tokens, generated)

    def remaining(self, generated: int) -> tuple[float, float]:
        """Return the expected tokens and token-iterations after `generated` tokens, given that it has not ended.

        A request that has outlived every length of its forecast is taken to generate what the median of its tail says:
        as many tokens again where the tail is not known.
        """
        place, alive = bisect_right(self._edges, generated), 0.0
        if place < len(self._edges):
            left, before = self._edges[place - 1], -self._fall[place - 1]
            right, after = self._edges[place], -self._fall[place]
            alive = before + (generated - left) / (right - left) * (after - before)
        if alive <= 0:
            again = max(1, round(generated * (math.pow(2.0, self._spread) - 1.0)))
            return again, volume(self._num_prompt_tokens + generated, again)
        width = right - generated
        area = width * (alive + after) / 2 + self._area_beyond[place]
        moment = width * ((2 * generated + right) * alive + (generated + 2 * right) * after) / 6
        moment += self._moment_beyond[place]
        return area / alive, ((self._num_prompt_tokens + 0.5) * area + moment) / alive


def _integrals_from_each(parts: Floats) -> "array[float]":
    """Return what the parts from each edge on add up to, 0 from the last."""
    sums = np.zeros(len(parts) + 1)
    parts[::-1].cumsum(out=sums[-2::-1])
    return array("d", sums.tobytes())


@lru_cache(maxsize=4096)
def _shared(edges: bytes) -> "array[float]":
    return array("d", edges)
