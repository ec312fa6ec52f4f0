"""What a request to an engine says of its expected length, in the words that each engine reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Engine = Literal["vllm", "dynamo", "llm-d", "other"]

LOWER_BOUND_HEADER = "x-amin-output-len-lower-bound"
MEDIAN_HEADER = "x-amin-output-len-median"
BUCKET_HEADER = "x-amin-output-len-bucket"
HEADERS = (LOWER_BOUND_HEADER, MEDIAN_HEADER, BUCKET_HEADER)

# llm-d-router's `outlen-bucket` (its pull request 2309) takes SHORT for 100 tokens, LONG for 4,096 and UNKNOWN for
# 1,000; the borders are halfway between on a logarithmic axis.
_SHORT_BELOW, _LONG_FROM = 316, 2024


@dataclass(frozen=True, slots=True)
class Hint:
    """A predicted length in tokens."""

    lower_bound: int
    median: int
    upper_bound: int


def hint_headers(hint: Hint, engine: Engine) -> dict[str, str]:
    """Return the headers that every engine gets; llm-d's in its bins, for a plug-in of the picker to read."""
    headers = {LOWER_BOUND_HEADER: str(hint.lower_bound), MEDIAN_HEADER: str(hint.median)}
    if engine == "llm-d":
        is_long, is_short = hint.median >= _LONG_FROM, hint.median < _SHORT_BELOW
        headers[BUCKET_HEADER] = "LONG" if is_long else "SHORT" if is_short else "UNKNOWN"
    return headers


def with_hint(content: bytes, body: Mapping[str, Any], hint: Hint, engine: Engine) -> bytes:
    """Return a JSON body with what its engine reads in it; what the body says itself stays.

    For vLLM with our plug-in `vllm_xargs` holds the bounds, for Dynamo `nvext.agent_hints.osl` the median. Other
    engines refuse fields that they do not know.
    """
    if engine == "vllm":
        names = ("output_len_lower_bound", "output_len_prediction", "output_len_upper_bound")
        values = dict(zip(names, (hint.lower_bound, hint.median, hint.upper_bound), strict=True))
        return _with_field(content, body, "vllm_xargs", values)
    if engine == "dynamo":
        given = body.get("nvext")
        hints = given.get("agent_hints") if isinstance(given, Mapping) else None
        hints = {"osl": hint.median, **(hints if isinstance(hints, Mapping) else {})}
        return _with_field(content, body, "nvext", {}, {"agent_hints": hints})
    return content


def _with_field(
    content: bytes,
    body: Mapping[str, Any],
    name: str,
    defaults: Mapping[str, Any],
    settled: Mapping[str, Any] | None = None,
) -> bytes:
    given = body.get(name)
    if name in body:
        if given is not None and not isinstance(given, Mapping):
            return content  # the engine will say what is wrong with it
        return json.dumps({**body, name: {**defaults, **(given or {}), **(settled or {})}}).encode()
    start = content.index(b"{") + 1
    field = json.dumps({name: {**defaults, **(settled or {})}}).encode()[1:-1]
    return content[:start] + field + (b"," if body else b"") + content[start:]
