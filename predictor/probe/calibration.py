"""Calibration of renewed bounds: at each stage of an answer among those still alive, and over the whole answer."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.bounds.calibration import LEVEL_MARGIN, ConformalTable
from predictor.bounds.censoring import complete_weights
from predictor.bounds.distribution import BoolArray, FloatArray
from predictor.errors import InputError

FEWEST_PROMPTS = 30
"""A stage with fewer prompts alive joins the one before it."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Renewals of held-out answers, [S] each.

    Attributes:
        prompt: Its prompt.
        draw: Which of the prompt's answers.
        generated: Tokens that were out.
        score: The predicted CDF at one token past the true remaining length; the bound at a lower level holds.
        remaining: Tokens that came after.
        is_truncated: Whether more would have come.
    """

    prompt: IntArray
    draw: IntArray
    generated: IntArray
    score: FloatArray
    remaining: IntArray
    is_truncated: BoolArray

    def select(self, rows: IntArray) -> "Scores":
        """Return some of the rows."""
        return Scores(*(getattr(self, field.name)[rows] for field in fields(self)))

    def of_answers(self) -> "Scores":
        """Return a row for each answer: its smallest score, at whatever renewal, and its whole length."""
        key = np.column_stack([self.prompt, self.draw])
        _, first, of = np.unique(key, axis=0, return_index=True, return_inverse=True)
        smallest = np.full(len(first), np.inf)
        np.minimum.at(smallest, of.ravel(), self.score)
        whole = self.select(first)
        return replace(whole, score=smallest, remaining=whole.remaining + whole.generated)


@dataclass(frozen=True, slots=True)
class StageCalibration:
    """Levels at which to read the CDF of the remaining length.

    A bound that is renewed is looked at several times, so two promises can be asked for. *By stage*: of the answers
    alive at a renewal, a share of at least 1 - tau reaches the bound made there. *Over the answer*: a share of at least
    1 - tau of all answers reaches every bound that was made for it, and so the largest, which Amin goes by. The second
    is split conformal on the smallest score that an answer had at any renewal: at a lower level all its bounds held.

    Attributes:
        starts: First token count of each stage, ascending from 0.
        stages: For each, the scores of the answers alive there, by prompt.
        whole: The smallest score of each answer, by prompt.
    """

    starts: tuple[int, ...]
    stages: tuple[ConformalTable, ...]
    whole: ConformalTable

    @classmethod
    def fit(cls, rows: "Scores") -> "StageCalibration":
        """Return the calibration on `rows`, each a renewal of an answer.

        Complete answers stand in for those that were cut, by inverse probability of censoring weights: a cut answer's
        score is that of a length it outlived.

        Raises:
            InputError: There is no row of a prompt's last token (0 tokens out).
        """
        starts = _stages(rows.prompt, rows.generated)
        place = np.searchsorted(starts, rows.generated, side="right") - 1
        tables = [_by_prompt(rows.select(np.flatnonzero(place == k))) for k in range(len(starts))]
        return cls(tuple(starts), tuple(tables), _by_prompt(rows.of_answers()))

    def level(self, tau: float, generated: int) -> float:
        """Return the level for a bound made after `generated` tokens that holds by stage; InputError as `threshold`."""
        stage = bisect_right(self.starts, generated) - 1
        return max(self.stages[stage].threshold(tau) - LEVEL_MARGIN, 0.0)

    def levels(self, tau: float, generated: IntArray, *, over_answer: bool = False) -> FloatArray:
        """Return the level of each of N renewals; InputError as `threshold`."""
        if over_answer:
            return np.full(len(generated), self.level_over_answer(tau))
        by_count = {int(t): self.level(tau, int(t)) for t in np.unique(generated)}
        return np.array([by_count[int(t)] for t in generated], dtype=np.float64)

    def level_over_answer(self, tau: float) -> float:
        """Return the level at which all bounds of an answer hold together; InputError as `threshold`."""
        return max(self.whole.threshold(tau) - LEVEL_MARGIN, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration for JSON."""
        stages = [table.to_dict() for table in self.stages]
        return {"starts": list(self.starts), "stages": stages, "whole": self.whole.to_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "StageCalibration":
        """Return the calibration that `to_dict` wrote."""
        stages = tuple(ConformalTable.from_dict(stage) for stage in value["stages"])
        return cls(tuple(value["starts"]), stages, ConformalTable.from_dict(value["whole"]))


def _stages(prompt: IntArray, generated: IntArray) -> list[int]:
    """Return the token counts at which a stage starts: those that were kept, where enough prompts are alive."""
    counts = sorted(set(generated.tolist()))
    if not counts or counts[0] != 0:
        raise InputError("states: none of a prompt's last token (0 tokens out); collect the states again")
    return [t for t in counts if t == 0 or len(set(prompt[generated == t].tolist())) >= FEWEST_PROMPTS]


def _by_prompt(rows: Scores) -> ConformalTable:
    if not len(rows.prompt):
        return ConformalTable.fit([])
    order = np.argsort(rows.prompt, kind="stable")
    ends = np.flatnonzero(np.diff(rows.prompt[order])) + 1
    weights = complete_weights(np.split(rows.remaining[order], ends), np.split(rows.is_truncated[order], ends))
    return ConformalTable.fit(np.split(rows.score[order], ends), weights)
