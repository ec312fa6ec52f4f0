import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.prompts.features import _AMOUNTS, _FOLDED, _MARKS, _SIZES, NAMES, text_features
from predictor.prompts.terms import PAIR, choose_terms, prompt_terms, weigh_terms
from predictor.prompts.words import AFTER_LINE_END


def value(prompt: str, name: str) -> float:
    """One feature of a prompt of ten tokens."""
    return float(text_features([prompt], [10])[0, NAMES.index(name)])


def test_every_feature_has_a_name_of_its_own() -> None:
    """One column each, and finite for odd prompts."""
    prompts = ["", " ", "Write a poem.", "\x00\ud7ff😀" * 50, "١٢ words", "9" * 400, "\n\n\n", "Ten,000 words"]
    matrix = text_features(prompts, [2] * len(prompts))
    assert len(set(NAMES)) == len(NAMES)
    assert matrix.shape == (len(prompts), len(NAMES))
    assert matrix.dtype == np.float32
    assert np.isfinite(matrix).all()
    assert text_features([], []).shape == (0, len(NAMES))


@pytest.mark.parametrize(
    ("prompt", "unit", "size"),
    [
        ("Write an essay of 500 words.", "words", 500),
        ("Write a 1,200-word essay", "words", 1200),
        ("Summarize it in Two short sentences.", "sentences", 2),
        ("a five paragraph essay", "paragraphs", 5),
        ("Give me a dozen easy dinner recipes", "items", 12),
        ("99999 words please", "words", 5000),
    ],
)
def test_a_requested_size_is_read_in_digits_and_words(prompt: str, unit: str, size: int) -> None:
    """Up to a cap."""
    assert value(prompt, f"asks_size:{unit}") == 1
    assert value(prompt, f"log_size:{unit}") == pytest.approx(np.log1p(size), rel=1e-6)


def test_words_count_as_words() -> None:
    """An act in the first words is told from one later, and a part of a word is none."""
    late = "Here is a long text about rivers and engines, translate it"
    assert value(late, "act:translate") == 1
    assert value(late, "first_words:translate") == 0
    assert value("Translate this", "first_words:translate") == 1
    assert value("The untranslated text", "act:translate") == 0
    assert value("Why?", "ends_in_question") == 1


@pytest.mark.parametrize("start", ["", "a:", "answer", "example", "5"])
@pytest.mark.parametrize("repeated", ["a) ", "word ", "1", "or ?", "five ", "\n", " ", "\n ", "-", "1\n"])
def test_a_prompt_of_a_million_characters_is_read_in_no_time(start: str, repeated: str) -> None:
    """Whatever it repeats; a pattern of quadratic time takes seconds."""
    started = time.process_time()
    text_features([start + repeated * (1_000_000 // len(repeated)) + "end"], [1])
    assert time.process_time() - started < 5  # processor time; what else the machine does is none


@given(st.lists(st.sampled_from(["\n", " ", "\t", "\x85", "\u2028", "is", "12", "x", ":", "a:"]), max_size=12))
def test_line_ends_are_found_as_by_the_plain_patterns(pieces: list[str]) -> None:
    """Which take quadratic time."""
    text = "".join(pieces)
    marks = {pattern.pattern: pattern for pattern, _ in _MARKS}
    for plain, linear in (
        (r"^\s*(?:is|are)\b", next(pattern for name, pattern in marks.items() if "(?:is|" in name)),
        (r"^\s*\d+\s*$", next(pattern for name, pattern in marks.items() if r"\d++[" in name)),
        (r"\n\s*a:\s*\n", next(pattern for name, pattern in marks.items() if "a:[" in name)),
    ):
        assert (linear.search(text) is None) == (re.search(plain, text, re.MULTILINE) is None)
    found, known = re.search(rf"{AFTER_LINE_END}x", text), re.search(r"\n\s*x", text)
    assert (found and found.start(1)) == (known and known.start())


WORDS = "Input: A: B. ten Hundred someone seven 12 1,200 99999999 - words Sentences page tips bits that"
PIECES_OF_PATTERNS = [
    *re.findall(r"[a-z().?-]+", " ".join(pattern.pattern for pattern, _ in _MARKS)),
    *WORDS.split(),
    "\n", "\n\n", "---", "\u0130nput:", "\u017fix", "\u212a", "e\u0301", "\u0661\u0662",
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES_OF_PATTERNS), max_size=30), st.sampled_from(["", " ", "-", "\n"]))
def test_the_quick_search_finds_what_the_patterns_alone_find(pieces: list[str], between: str) -> None:
    """In any case, and without the texts that are looked for first."""
    text = between.join(pieces)
    row = dict(zip(NAMES, text_features([text], [2])[0].tolist(), strict=True))
    found = [re.search(mark.pattern, text, re.IGNORECASE | re.MULTILINE) is not None for mark, _ in _MARKS]
    assert [value for name, value in row.items() if name.startswith("has:")] == found
    amount = "|".join(f"(?:{pattern.pattern})" for pattern in _AMOUNTS)
    sizes = [re.search(f"(?:{amount}){size.pattern}", text, re.IGNORECASE) is not None for size, _ in _SIZES.values()]
    assert [value for name, value in row.items() if name.startswith("asks_size:")] == sizes


def test_text_is_folded_as_regular_expressions_ignore_case() -> None:
    """All of Unicode."""
    letter = re.compile("[a-z]", re.IGNORECASE)
    characters = [chr(code) for code in range(0x110000)]
    folded = "".join(characters).translate(_FOLDED)
    different = [before for before, after in zip(characters, folded, strict=True) if before != after]
    assert different == [each for each in characters if letter.match(each) and not "a" <= each <= "z"]


def test_terms_are_tokens_and_pairs_without_the_special_ends() -> None:
    """Weighed by 1 + log(count); unknown ones are left out."""
    assert prompt_terms([101, 7, 8, 7, 102]).tolist() == [7, 8, 7, 8 * PAIR + 8, 9 * PAIR + 7]
    assert prompt_terms([101, 102]).tolist() == []
    known = np.asarray([5, 7, 9 * PAIR + 7])
    places, weights = weigh_terms([101, 7, 8, 7, 102], known)
    assert places.tolist() == [1, 2]
    np.testing.assert_allclose(weights, [1 + np.log(2), 1])
    assert weigh_terms([101, 7, 102], np.asarray([], dtype=np.int64))[0].tolist() == []


def test_the_terms_of_most_prompts_are_chosen() -> None:
    """In increasing order, none that only one prompt has."""
    prompts = [[0, 4, 3, 0], [0, 4, 3, 0], [0, 4, 9, 0]]
    assert choose_terms(prompts, 10) == (3, 4, 5 * PAIR + 3)
    assert choose_terms(prompts, 1) == (4,)
