"""A prompt as the set of its character 5-grams, on which near-duplicates are defined."""

import re
import unicodedata

import numpy as np
import numpy.typing as npt

SHINGLE_LENGTH = 5
CodeArray = npt.NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15
_POWERS = np.asarray([pow(_BASE, power, 1 << 64) for power in range(SHINGLE_LENGTH)], dtype=np.uint64)


def normalised(prompt: str) -> str:
    """Return the prompt in lower case with single spaces, equal characters composed alike (NFKC)."""
    text = prompt if prompt.isascii() else unicodedata.normalize("NFKC", prompt)
    return re.sub(r"\s+", " ", text.strip().lower())


def shingles(prompt: str) -> CodeArray:
    """Return the hashed character 5-grams of the normalised prompt, sorted, each once; never empty.

    A text of fewer characters has one shingle, itself.
    """
    characters = np.frombuffer(normalised(prompt).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    if len(characters) < SHINGLE_LENGTH:
        characters = np.pad(characters, (0, SHINGLE_LENGTH - len(characters)))
    size = len(characters) - SHINGLE_LENGTH + 1
    codes = np.zeros(size, dtype=np.uint64)
    for place in range(SHINGLE_LENGTH):
        codes += characters[place : place + size] * _POWERS[place]
    return np.unique(mixed(codes))


def mixed(codes: CodeArray) -> CodeArray:
    """Return the codes scrambled one to one, so that every bit depends on all (the finaliser of splitmix64)."""
    codes = (codes ^ (codes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    codes = (codes ^ (codes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return codes ^ (codes >> np.uint64(31))


def jaccard(left: CodeArray, right: CodeArray) -> float:
    """Return the Jaccard similarity of two shingle sets."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)
