"""How long an answer a request asks for."""

import time

import numpy as np
import pytest

from predictor.prompts.context import RequestContext
from predictor.prompts.instructions import INSTRUCTION_NAMES, find_instruction, instruction_features
from predictor.prompts.request_features import FEATURE_NAMES, request_features

# Unit and count that each text asks for.
AMOUNTS = {
    "Explain tides in 2,000 words.": ("words", 2000),
    "Write a 500-word essay on tides": ("words", 500),
    "two thousand words on tides": ("words", 2000),
    "About 2k words, please": ("words", 2000),
    "Answer in one sentence.": ("sentences", 1),
    "Write three short paragraphs": ("paragraphs", 3),
    "Summarize it in a paragraph": ("paragraphs", 1),
    "a five page report": ("pages", 5),
    "List 50 animals": ("items", 50),
    "Give me 20 good names for a dog": ("items", 20),
    "5 tips for sleep": ("items", 5),
    "use at most 280 characters": ("characters", 280),
    "Escribe un ensayo de 500 palabras": ("words", 500),
    "Explique en une phrase": ("sentences", 1),
    "Erkläre das in drei Sätzen": ("sentences", 3),
    "Escreva dois parágrafos": ("paragraphs", 2),
    "Напиши рассказ на 300 слов": ("words", 300),
    "用100字介绍北京": ("ideographs", 100),
    "用三句话介绍北京": ("sentences", 3),
    "日本を二百文字で紹介して": ("ideographs", 200),
    "اشرح في 50 كلمة": ("words", 50),
    "100 शब्दों में लिखिए": ("words", 100),
}


@pytest.mark.parametrize("text", AMOUNTS)
def test_an_amount_is_found_in_ten_languages(text: str) -> None:
    """Its unit and its count."""
    amount = find_instruction(text).amount
    assert amount is not None
    assert (amount.unit, amount.count) == AMOUNTS[text]


@pytest.mark.parametrize(
    "text", ["Hi!", "A train travels at 60 km/h for 2 hours.", "It costs 50 % more", "", "What is 7 * 6?", "In 1969"]
)
def test_numbers_of_other_things_ask_for_nothing(text: str) -> None:
    """A count of hours is no length."""
    assert find_instruction(text).target is None


@pytest.mark.parametrize(
    ("shorter", "longer"),
    [
        ("Explain DNA in one sentence.", "Explain DNA in three paragraphs."),
        ("Explain DNA briefly.", "Explain DNA in detail."),
        ("Explain DNA, not in detail.", "Explain DNA, not briefly."),
        ("Is DNA a molecule? Yes or no?", "Is DNA a molecule? Explain in depth."),
        ("Write a haiku", "Write an essay"),
        ("Write no more than 100 words", "Write at least 100 words"),
        ("Write a short story", "Write a long story"),
        ("Solo la respuesta: ¿qué es el ADN?", "Explica detalladamente qué es el ADN"),
        ("簡潔に説明して", "詳しく説明して"),
        ("请简要介绍", "请详细介绍"),
        ("Объясни кратко", "Объясни подробно"),
        ("اشرح باختصار", "اشرح بالتفصيل"),
        ("संक्षेप में बताइए", "विस्तार से बताइए"),
    ],
)
def test_a_person_would_order_the_targets(shorter: str, longer: str) -> None:
    """Each says something, and the first asks for less."""
    targets = [find_instruction(text).target for text in (shorter, longer)]
    assert targets[0] is not None
    assert targets[1] is not None
    assert targets[0] < targets[1]


def test_the_system_prompt_speaks_where_the_prompt_says_nothing() -> None:
    """Otherwise the prompt has the last word."""
    asked = dict(zip(INSTRUCTION_NAMES, instruction_features("What is DNA?", "Answer in one word."), strict=True))
    assert asked["asks_in_system"]
    assert asked["unit:words"]
    assert asked["log_target"] < 1.0
    own = instruction_features("What is DNA? Explain in 300 words.", "Answer in one word.")
    assert own == instruction_features("What is DNA? Explain in 300 words.")
    rows = request_features(["What is DNA?"] * 2, [4, 4], [None, RequestContext(system_prompt="Answer in one word.")])
    assert rows.shape == (2, len(FEATURE_NAMES))
    assert (rows[0] != rows[1]).any()


@pytest.mark.parametrize("piece", ["in 3 ", "1,", "三", "not ", "a ", "100 शब्दों ", "5 5 words", " ", "1.000"])
def test_a_text_is_read_in_linear_time(piece: str) -> None:
    """A hundred times the text costs no more than its two ends do, and numbers in a row no more than others."""
    started = time.process_time()
    values = instruction_features(piece * 200_000)
    assert time.process_time() - started < 5  # processor time; what else the machine does is none
    assert np.isfinite(values).all()
