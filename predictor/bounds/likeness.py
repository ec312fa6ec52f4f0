"""How alike two served models may answer, by what their names tell: family, size, and whether they think."""

import re
from dataclasses import dataclass
from functools import lru_cache
from math import log2

import numpy as np

from predictor.bounds.distribution import FloatArray

# Families that go by several names.
FAMILIES = {
    "ministral": "mistral", "mixtral": "mistral", "magistral": "mistral", "codestral": "mistral", "devstral": "mistral",
    "codellama": "llama", "meta": "llama", "qwq": "qwen", "qvq": "qwen", "sky": "qwen", "codegemma": "gemma",
}  # fmt: skip
# Weights fall by exp(-distance): of another family, of twice the size, of one that thinks where the other does not.
OTHER_FAMILY, TWICE_THE_SIZE, OTHER_THINKING = 2.0, 0.5, 2.0

_FAMILY = re.compile(r"[a-z]+")
_SIZE = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z])")
_THINKS = re.compile(r"think|reason|qwq|\bt1\b|\br1\b|\bo[1-9]\b")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a served model; `billions` of parameters, all experts together, None where it is not known."""

    family: str
    billions: float | None
    thinks: bool

    @classmethod
    def of_name(cls, name: str) -> "ModelFacts":
        """Return what a name tells, as Qwen/Qwen3-30B-A3B-Thinking-2507: its first word, its first size, and hints."""
        text = name.rpartition("/")[2].lower()
        word, size = _FAMILY.search(text), _SIZE.search(text)
        family = word.group() if word else ""
        billions = None
        if size is not None:
            experts, number, unit = size.groups()
            billions = float(number) * float(experts or 1) * (1.0 if unit == "b" else 1e-3)
        return cls(FAMILIES.get(family, family), billions or None, _THINKS.search(text) is not None)

    def distance(self, other: "ModelFacts") -> float:
        """Return how far the other is, at least 0; a size that is not known counts as half or twice as large."""
        octaves = 1.0
        if self.billions is not None and other.billions is not None:
            octaves = abs(log2(self.billions / other.billions))
        kinds = OTHER_FAMILY * (self.family != other.family) + OTHER_THINKING * (self.thinks != other.thinks)
        return kinds + TWICE_THE_SIZE * octaves


@lru_cache(256)
def likeness(name: str, known: tuple[str, ...]) -> FloatArray:
    """Return the weights [M], 1 in all, with which M known served models stand for another one called `name`.

    They are kept, since a server asks for the same again and again; do not write into them.

    One of the same name has none, since it is not another; where it is the only one, it has all.
    """
    facts = ModelFacts.of_name(name)
    distances = np.asarray([facts.distance(ModelFacts.of_name(other)) for other in known])
    weights = np.exp(distances.min() - distances) * np.asarray([other != name for other in known])
    if not weights.any():
        return np.full(len(known), 1.0 / len(known))
    return np.asarray(weights / weights.sum())
