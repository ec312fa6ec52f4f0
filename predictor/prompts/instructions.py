"""How long an answer a request asks for: counts of words, sentences or items, "briefly", "yes or no" and their like.

What is found becomes a target in tokens, its kind and how it was said; the network learns how far a model keeps to it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import log1p

from predictor.prompts import length_words as words

# A wanted length stands at either end of a prompt; the text between is material.
MAX_HEAD_CHARACTERS = 1_500
MAX_TAIL_CHARACTERS = 800
# A unit stands within so many words of its amount ("three very short sentences"), a negation before what it denies.
MAX_WORDS_BETWEEN = 3
MAX_TARGET = 32_768.0

UNIT_NAMES = ("tokens", "characters", "words", "sentences", "lines", "items", "paragraphs", "pages", "ideographs")
# Tokens of answers that are said to be of a kind, and factors on them.
YES_NO_TOKENS, ANSWER_TOKENS, BRIEF_TOKENS, DETAILED_TOKENS = 3.0, 10.0, 70.0, 900.0
BRIEF_FACTOR, DETAILED_FACTOR = 0.5, 1.5
AT_MOST_FACTOR, AT_LEAST_FACTOR = 0.8, 1.15

INSTRUCTION_NAMES = (
    "asks_length", "log_target", "asks_amount", "log_amount_tokens", "at_least", "at_most", "asks_in_system",
    *(f"unit:{name}" for name in UNIT_NAMES),
    "brief", "detailed", "not_brief", "not_detailed", "yes_or_no", "answer_only", "names_form", "log_form",
)  # fmt: skip
"""Names of the columns of `instruction_features`."""

_NUMBER = r"\d{1,6}(?:[.,]\d{3})*k?"
_WORD = re.compile(rf"{_NUMBER}(?![^\W\d])|[^\W\d_][\w'\u2019]*|[%$€£]")
_JOINED_NUMBER = "|".join(sorted(words.JOINED_NUMBERS, key=lambda text: (-len(text), text)))
_JOINED = [
    (unit, re.compile(rf"(\d{{1,6}}|(?:{_JOINED_NUMBER}){{1,4}})[ ]?(?:{texts})"))
    for unit, texts in words.JOINED_UNITS.items()
]
# Arabic, Devanagari, kana and Chinese characters: without one there is no joined amount, and its patterns are slow.
_JOINED_SCRIPT = re.compile(r"[\u0600-\u06ff\u0900-\u097f\u3040-\u30ff\u4e00-\u9fff]")
_UNIT_OF = {word: unit for unit, texts in words.UNITS.items() for word in texts.split()}
_NUMBER_OF = {word: float(value) for value, texts in words.NUMBERS.items() for word in texts.split()}
_FORM_OF = {word: float(tokens) for tokens, texts in words.FORMS.items() for word in texts.split()}
_BRIEF, _DETAILED, _NEGATIONS, _ACTS, _ASKING, _AT_LEAST, _AT_MOST = (
    frozenset(texts.split())
    for texts in (
        words.BRIEF, words.DETAILED, words.NEGATIONS, words.ACTS, words.ASKING, words.AT_LEAST, words.AT_MOST
    )
)  # fmt: skip
_KNOWN = _UNIT_OF.keys() | _NUMBER_OF.keys() | _FORM_OF.keys() | _BRIEF | _DETAILED
# A number of these, or so large a number, is asked for also where no word says so ("5 tips", "500 words on tides").
TOLD_UNITS, MIN_TOLD_COUNT = ("sentences", "paragraphs", "items", "ideographs"), 20
# "a word" and "a page" are told of more often than asked for.
_COUNTED_BY_A = {"sentence": "sentences", "paragraph": "paragraphs"}


@dataclass(frozen=True, slots=True)
class Amount:
    """A count of units that an answer is to have; `direction` is +1 for at least, -1 for at most, 0 for neither."""

    unit: str
    count: float
    direction: int = 0
    is_asked: bool = True

    @property
    def tokens(self) -> float:
        """The length of such an answer, about."""
        factor = {1: AT_LEAST_FACTOR, -1: AT_MOST_FACTOR}.get(self.direction, 1.0)
        return min(self.count * words.TOKENS_PER_UNIT[self.unit] * factor, MAX_TARGET)


@dataclass(frozen=True, slots=True)
class LengthInstruction:
    """What a text says of the length of the answer; all that is not said is None, False or 0."""

    amount: Amount | None = None
    is_brief: bool = False
    is_detailed: bool = False
    is_not_brief: bool = False
    is_not_detailed: bool = False
    is_yes_or_no: bool = False
    is_answer_only: bool = False
    form_tokens: float = 0.0

    @property
    def target(self) -> float | None:
        """The tokens that it asks for, about; None where it does not."""
        if self.amount is not None:
            return self.amount.tokens
        if self.is_yes_or_no:
            return YES_NO_TOKENS
        if self.is_answer_only:
            return ANSWER_TOKENS
        if (self.is_brief or self.is_not_detailed) and not self.is_detailed:
            return BRIEF_FACTOR * self.form_tokens or BRIEF_TOKENS
        if (self.is_detailed or self.is_not_brief) and not self.is_brief:
            return DETAILED_FACTOR * self.form_tokens or DETAILED_TOKENS
        return self.form_tokens or None

    @property
    def asks_beyond_form(self) -> bool:
        """Whether it says more than a kind of text."""
        return self.target is not None and self.target != self.form_tokens


def find_instruction(text: str) -> LengthInstruction:
    """Return what `text` says of the length of its answer; reads both ends of it, in time linear in their length."""
    if len(text) > MAX_HEAD_CHARACTERS + MAX_TAIL_CHARACTERS:
        text = f"{text[:MAX_HEAD_CHARACTERS]}\n{text[-MAX_TAIL_CHARACTERS:]}"
    folded = text.lower()
    found = _WORD.findall(folded)
    places = [place for place, word in enumerate(found) if word in _KNOWN or word[0].isdecimal()]
    amounts = [amount for place in places if (amount := _amount(found, place)) is not None]
    forms = [_FORM_OF[found[place]] for place in places if found[place] in _FORM_OF]
    brief = [_is_denied(found, place) for place in places if found[place] in _BRIEF]
    detailed = [_is_denied(found, place) for place in places if found[place] in _DETAILED]
    brief += [False] * any(piece in folded for piece in words.BRIEF_PIECES)
    detailed += [False] * any(piece in folded for piece in words.DETAILED_PIECES)
    if not folded.isascii() and _JOINED_SCRIPT.search(folded):
        amounts += _joined_amounts(folded)
        if any(piece in folded for piece in words.NEGATED_PIECES) and any(
            map(folded.__contains__, words.DETAILED_PIECES)
        ):
            detailed = [True]
    return LengthInstruction(
        _chosen(amounts),
        False in brief, False in detailed, True in brief, True in detailed,
        any(piece in folded for piece in words.YES_OR_NO), any(piece in folded for piece in words.ANSWER_ONLY),
        forms[0] if forms else 0.0,
    )  # fmt: skip


def instruction_features(prompt: str, system_prompt: str | None = None) -> list[float]:
    """Return the features of what a request says of its answer's length, in the order of `INSTRUCTION_NAMES`.

    What the system prompt says counts where the prompt itself says nothing.
    """
    found, in_system = find_instruction(prompt), False
    if system_prompt and not found.asks_beyond_form:
        general = find_instruction(system_prompt)
        in_system = general.asks_beyond_form
        found = general if in_system else found
    target, amount = found.target, found.amount
    return [
        float(target is not None),
        log1p(target or 0.0),
        float(amount is not None),
        log1p(amount.tokens if amount else 0.0),
        float(amount is not None and amount.direction > 0),
        float(amount is not None and amount.direction < 0),
        float(in_system),
        *(float(amount is not None and amount.unit == name) for name in UNIT_NAMES),
        *map(float, (found.is_brief, found.is_detailed, found.is_not_brief, found.is_not_detailed)),
        float(found.is_yes_or_no),
        float(found.is_answer_only),
        float(found.form_tokens > 0),
        log1p(found.form_tokens),
    ]


def _amount(found: Sequence[str], place: int) -> Amount | None:
    """Return the amount that the number at `place` gives, if it is one of a unit or of things asked for."""
    word = found[place]
    count = _NUMBER_OF.get(word) if not word[0].isdecimal() else _parsed(word)
    before = found[max(place - MAX_WORDS_BETWEEN, 0) : place]
    if count is None:
        unit = _COUNTED_BY_A.get(word)
        is_counted = unit is not None and before[-1:] in (["a"], ["an"], ["short"], ["single"])
        return Amount(unit, 1.0) if unit is not None and is_counted else None
    after = found[place + 1 : place + 2 + MAX_WORDS_BETWEEN]
    if word[0].isdecimal() and after[:1] and after[0] in ("%", "$", "€", "£"):
        return None
    if after[:1] and _NUMBER_OF.get(after[0], 0.0) >= 100:  # "two thousand"
        count, after = count * _NUMBER_OF[after[0]], after[1:]
    is_asked = any(word in _ASKING or word in _ACTS for word in before)
    for distance, following in enumerate(after):
        if (unit := _UNIT_OF.get(following)) is not None and not (
            distance and unit in ("words", "characters") and distance > 1
        ):
            later = after[distance + 1 : distance + 3]
            return Amount(unit, count, _direction(before) or _direction(later), is_asked)
        if following[0].isdecimal():
            return None
    is_listed = count > 1 and bool(after) and any(word in _ACTS for word in before)
    return Amount("items", count, _direction(before), True) if is_listed and count <= 500 else None


def _direction(before: Sequence[str]) -> int:
    denied = any(word in _NEGATIONS for word in before)
    if "more" in before or "longer" in before:
        return -1 if denied else 1
    if any(word in _AT_LEAST for word in before):
        return -1 if denied else 1
    if any(word in _AT_MOST for word in before) or ("up" in before and "to" in before):
        return 1 if denied else -1
    return 0


def _parsed(number: str) -> float:
    digits = number.rstrip("k").replace(",", "").replace(".", "")
    return float(digits) * (1000.0 if number.endswith("k") else 1.0)


def _is_denied(found: Sequence[str], place: int) -> bool:
    return any(word in _NEGATIONS for word in found[max(place - MAX_WORDS_BETWEEN, 0) : place])


def _joined_amounts(folded: str) -> list[Amount]:
    amounts = [
        Amount(unit, _joined_number(match[1])) for unit, pattern in _JOINED for match in pattern.finditer(folded)
    ]
    amounts += [Amount(*amount) for text, amount in words.ALONE.items() if text in folded]
    return [amount for amount in amounts if amount.count > 0]


def _joined_number(text: str) -> float:
    """Return the value of digits, or of a number written in Chinese, Japanese, Arabic or Hindi."""
    if text.isdecimal():
        return float(text)
    total = current = 0.0
    while text:
        word = next(word for word in sorted(words.JOINED_NUMBERS, key=len, reverse=True) if text.startswith(word))
        value, text = float(words.JOINED_NUMBERS[word]), text[len(word) :]
        if value >= 10:
            total, current = total + (current or 1.0) * value, 0.0
        else:
            current = value
    return total + current


def _chosen(amounts: Sequence[Amount]) -> Amount | None:
    """Return the amount that decides: the longest of those asked for, or of all if none is."""
    asked = [amount for amount in amounts if amount.is_asked]
    told = [amount for amount in amounts if amount.unit in TOLD_UNITS or amount.count >= MIN_TOLD_COUNT]
    return max(asked or told, key=lambda amount: amount.tokens, default=None)
