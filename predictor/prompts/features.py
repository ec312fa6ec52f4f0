"""Features of a prompt's text in plain Python: its shape, the size it asks for, and the words that say what it wants.

They go into the network next to the encoder, which scales them; the encoder alone sees neither counts nor numbers well,
nor the middle of a long prompt.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import log1p

import numpy as np
import numpy.typing as npt

from predictor.prompts.words import ACTS, AFTER_LINE_END, MARKS, NUMBER_WORDS, PIECES, SIZE_UNITS, SUBJECTS

FloatMatrix = npt.NDArray[np.float32]

# Longer prompts are read at both ends alone, so that one of a million characters costs no more.
MAX_CHARACTERS = 20_000
# A requested size stands near the start.
MAX_SIZE_CHARACTERS = 1_500
NUM_FIRST_WORDS = 6

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_CAPITALS = re.compile(r"\b[A-Z]{2,}\b")
_NUMBERED_LINE = re.compile(r"\s*\d+[.)]")
_MATERIAL = re.compile(rf"{AFTER_LINE_END}(?:input|context|text|passage)\s*+:")
# What re.IGNORECASE takes for an ASCII letter. Patterns are matched case-sensitively against text folded by it, which
# is several times faster and gives the same.
_FOLDED = str.maketrans(
    {chr(code): chr(code + 32) for code in range(ord("A"), ord("Z") + 1)}
    | {"\u0130": "i", "\u0131": "i", "\u017f": "s", "\u212a": "k"}
)
_NUMBER_WORDS = "|".join(sorted(NUMBER_WORDS.keys() - {"zero"}, key=lambda word: (-len(word), word)))
# Amounts are found once, by a pattern for digits and one for words, since each by itself has few first letters.
_AMOUNTS = [re.compile(rf"(?:{amount})(?=[\s-])") for amount in (r"\d\d{0,4}(?:,\d{3})?", _NUMBER_WORDS)]
_SIZES = {unit: (re.compile(rf"[\s-]+{between}{noun}\b"), texts) for unit, (between, noun, texts) in SIZE_UNITS.items()}
_MARKS = [(re.compile(mark), texts) for mark, texts in MARKS.items()]
_ACTS, _SUBJECTS = ACTS.split(), SUBJECTS.split()

_COUNTS = (
    "characters", "tokens", "words", "lines", "sentences", "numbers", "capitalised_words", "indented_lines",
    "numbered_lines", "short_lines", "longest_word", "longest_line", "first_line", "last_line", "last_paragraph",
    "material", "first_number", "largest_number",
)  # fmt: skip
_SHARES = ("word_length", "distinct_words", "upper", "non_ascii", "digits", "punctuation", "white_space")
_ENDS = ("ends_in_question", "ends_in_period", "ends_in_colon", "starts_upper")
NAMES = (
    *(f"log_{name}" for name in _COUNTS),
    *_SHARES,
    *(f"{kind}:{unit}" for unit in _SIZES for kind in ("asks_size", "log_size")),
    *(f"log_count:{piece}" for piece in PIECES),
    *(f"has:{mark}" for mark in MARKS),
    *(f"act:{group}" for group in _ACTS),
    *(f"first_words:{group}" for group in _ACTS),
    *(f"subject:{group}" for group in _SUBJECTS),
    *_ENDS,
)


def text_features(prompts: Sequence[str], num_tokens: Sequence[int]) -> FloatMatrix:
    """Return the features [N, F] of N prompts of `num_tokens` encoder tokens, in the order of `NAMES`.

    Counts and sizes are log(1 + count), shares lie in [0, 1] (`word_length` is in characters), the rest is 0 or 1.
    """
    rows = [_features(prompt, count) for prompt, count in zip(prompts, num_tokens, strict=True)]
    return np.asarray(rows, dtype=np.float32).reshape(len(rows), len(NAMES))


def _features(prompt: str, num_tokens: int) -> list[float]:
    half = MAX_CHARACTERS // 2
    text = prompt if len(prompt) <= MAX_CHARACTERS else f"{prompt[:half]}\n{prompt[-half:]}"
    folded = text.lower() if text.isascii() else text.translate(_FOLDED)
    words = [word.lower() for word in _WORD.findall(text)]
    all_words, first_words, stripped = set(words), set(words[:NUM_FIRST_WORDS]), text.strip()
    return [
        *(log1p(count) for count in (len(prompt), num_tokens, *_counts(text, folded, words))),
        *_shares(text, words),
        *_sizes(folded[:MAX_SIZE_CHARACTERS]),
        *(log1p(text.count(piece)) for piece in PIECES),
        *(float(_any_in(texts, folded) and mark.search(folded) is not None) for mark, texts in _MARKS),
        *_groups(all_words, _ACT_PLACES, len(_ACTS)),
        *_groups(first_words, _ACT_PLACES, len(_ACTS)),
        *_groups(all_words, _SUBJECT_PLACES, len(_SUBJECTS)),
        *(float(stripped.endswith(mark)) for mark in "?.:"),
        float(stripped[:1].isupper()),
    ]


def _places(groups: Sequence[str]) -> dict[str, list[int]]:
    """Return, for each word, the places of the groups that it stands in."""
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        for word in group.split("|"):
            places.setdefault(word, []).append(place)
    return places


_ACT_PLACES, _SUBJECT_PLACES = _places(_ACTS), _places(_SUBJECTS)


def _groups(words: Iterable[str], places: Mapping[str, Sequence[int]], num_groups: int) -> list[float]:
    """Return 1 for each group that has one of `words`, 0 for the others."""
    found = [0.0] * num_groups
    for word in words:
        for place in places.get(word, ()):
            found[place] = 1.0
    return found


def _any_in(texts: Sequence[str], folded: str) -> bool:
    return any(text in folded for text in texts)


def _counts(text: str, folded: str, words: Sequence[str]) -> list[float]:
    lines, stripped = text.split("\n"), text.strip()
    numbers = [float(number[:12]) for number in _NUMBER.findall(text)]
    material = _MATERIAL.search(folded)
    return [
        len(words),
        len(lines),
        len(_SENTENCE_END.findall(text)),
        len(numbers),
        len(_CAPITALS.findall(text)),
        sum(line[:1] in (" ", "\t") for line in lines),
        sum(_NUMBERED_LINE.match(line) is not None for line in lines),
        sum(0 < len(line.strip()) < 12 for line in lines),
        max(map(len, words), default=0),
        max(map(len, lines)),
        len(lines[0]),
        len(stripped.rsplit("\n", 1)[-1]),
        len(stripped.rsplit("\n\n", 1)[-1]),
        len(text) - material.start(1) if material else 0,
        min(numbers[0], 1e5) if numbers else 0.0,
        min(max(numbers), 1e6) if numbers else 0.0,
    ]


def _shares(text: str, words: Sequence[str]) -> list[float]:
    size, num_words = max(len(text), 1), max(len(words), 1)
    characters = Counter(text).items()
    spaces = sum(count for character, count in characters if character.isspace())
    return [
        sum(map(len, words)) / num_words,
        len(set(words)) / num_words,
        sum(count for character, count in characters if character.isupper()) / size,
        sum(count for character, count in characters if character > "\x7f") / size,
        sum(count for character, count in characters if character.isdigit()) / size,
        sum(count for character, count in characters if not (character.isspace() or character.isalnum())) / size,
        spaces / size,
    ]


def _sizes(folded: str) -> list[float]:
    amounts = sorted(found.span() for pattern in _AMOUNTS for found in pattern.finditer(folded))
    values: list[float] = []
    for pattern, texts in _SIZES.values():
        known = amounts if _any_in(texts, folded) else []
        sizes = (folded[start:end] for start, end in known if pattern.match(folded, end))
        size = next(sizes, None)
        values += [0.0, 0.0] if size is None else [1.0, log1p(min(_amount(size), 5000.0))]
    return values


def _amount(folded: str) -> float:
    plain = folded.replace(",", "")
    return float(plain) if plain.isdecimal() else float(NUMBER_WORDS[plain])
