"""The records of the bundled predictors: one split over all files, and prompts that ask for a length."""

import numpy as np

from pipelines.studies.predictor.data import assign
from pipelines.studies.predictor.instruction_prompts import COUNTED, PAIRS, SAID, TOPICS, instructed_rows
from predictor.prompts.instructions import find_instruction


def row(prompt: str, model: str, split: str | None) -> dict[str, object]:
    """A row as the files have it."""
    return {"prompt": prompt, "model": model, "split": split}


def test_what_one_file_tests_no_other_trains_on() -> None:
    """A near-duplicate goes where its published twin is; a model without a test split gets half of its calibration."""
    long = "Explain why the sky is blue at noon and red in the evening, with examples from physics and from art. "
    rows = [row(long + "A", "known", "test"), row(long + "A!", "other", None), row(long + "A", "new", "train")]
    rows += [
        row(f"{name} number {i} has nothing to do with {i * 7}", "known", "train") for i, name in enumerate(TOPICS)
    ]
    rows += [
        row(f"own {name} of {i * 13} kinds, see {name[::-1]}", "new", "calibration") for i, name in enumerate(TOPICS)
    ]
    assign(rows)
    assert {r["split"] for r in rows[:3]} == {"test"}
    own = [r["split"] for r in rows if str(r["prompt"]).startswith("own ")]
    assert own.count("test") == own.count("calibration") == len(TOPICS) // 2
    assert {r["split"] for r in rows if " has nothing " in str(r["prompt"])} == {"train"}


def test_every_template_of_a_count_is_understood() -> None:
    """In each language: the unit is found, and twice the count is twice the target."""
    for templates, _, _, _ in COUNTED.values():
        for template in templates:
            targets = [find_instruction(template.format(x="chess", n=count)).target for count in (24, 48)]
            assert targets[0] is not None, template
            assert targets[1] == 2 * targets[0], template


def test_written_prompts_train_only_and_their_lengths_follow_what_is_asked() -> None:
    """One row for each model, all draws whole, longer where more is asked."""
    rows = instructed_rows(("a", "b"), 300)
    assert len(rows) == 600
    assert {r["split"] for r in rows} == {"train"}
    known = [(find_instruction(r["prompt"]).amount, np.median(r["output_lens"])) for r in rows]
    pairs = np.log([(amount.tokens, length) for amount, length in known if amount is not None])
    assert np.corrcoef(pairs.T)[0, 1] > 0.9


def test_the_pairs_are_of_another_wording_than_the_templates() -> None:
    """They are there to develop on, so nothing that trains may hold them."""
    written = {r["prompt"] for r in instructed_rows(("a",), 1500)}
    texts = [text for pair in PAIRS for text in pair]
    assert len(set(texts)) == 2 * len(PAIRS) >= 52
    assert not written & set(texts)
    assert not [text for text in texts if any(topic in text for topic in TOPICS if len(topic) > 5)]
    assert all(len(templates) for templates, _, _ in SAID)
