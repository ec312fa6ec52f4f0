"""Instructions that many prompts share, taken off before near-duplicates are looked for.

Prompts of one application differ in the message between the same long instructions, so that most of their text agrees
though they ask different things. What they share would make them one cluster, and splits of it impossible.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from predictor.splits.shingles import normalised

MIN_LENGTH = 100
"""Characters that a template has at least."""
MIN_SHARE = 0.2
"""Share of the distinct prompts that begin, or end, with it."""
MIN_PROMPTS = 20
MIN_REST = 15
"""Characters that must be left of a prompt; with fewer, prompts of a template are near-duplicates after all."""


def without_templates(prompts: Sequence[str]) -> list[str]:
    """Return the prompts without the beginnings and ends that at least a fifth of the distinct ones share.

    A prompt that no template begins or ends, or of which too little would be left, stays as it is.
    """
    distinct = list(dict.fromkeys(prompts))
    texts = [normalised(prompt) for prompt in distinct]
    heads, tails = _cuts(texts, lambda text: text), _cuts(texts, lambda text: text[::-1])
    rest: dict[str, str] = {}
    for prompt, text, head, tail in zip(distinct, texts, heads, tails, strict=True):
        left = text[head : max(len(text) - tail, head)]
        if (head or tail) and len(left) >= MIN_REST:
            rest[prompt] = left
    return [rest.get(prompt, prompt) for prompt in prompts]


def _cuts(texts: Sequence[str], read: Callable[[str], str]) -> list[int]:
    """Return how many characters of each text are a shared beginning, as `read` turns it; 0 where there is none."""
    least = max(MIN_PROMPTS, MIN_SHARE * len(texts))
    starts = [read(text)[:MIN_LENGTH] if len(text) > MIN_LENGTH else "" for text in texts]
    shared = {start for start, count in Counter(starts).items() if start and count >= least}
    templates = {
        start: _shared_beginning(sorted(read(text) for text, mine in zip(texts, starts, strict=True) if mine == start))
        for start in shared
    }
    return [
        len(template) if (template := templates.get(start)) and read(text).startswith(template) else 0
        for text, start in zip(texts, starts, strict=True)
    ]


def _shared_beginning(ordered: Sequence[str]) -> str:
    """Return the longest beginning that half of the sorted texts share."""
    half = max(len(ordered) // 2, 1)
    pairs = zip(ordered, ordered[half:], strict=False)
    return max((_common(first, last) for first, last in pairs), key=len, default="")


def _common(one: str, other: str) -> str:
    size = min(len(one), len(other))
    return one[: next((place for place in range(size) if one[place] != other[place]), size)]
