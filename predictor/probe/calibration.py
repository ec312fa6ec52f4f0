"""Calibration of renewed bounds: at each stage of an answer among those still alive, and over the whole answer."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.bounds.calibration import LEVEL_MARGIN, ConformalTable
from predictor.bounds.distribution import FloatArray
from predictor.errors import InputError

FEWEST_PROMPTS = 50
"""A stage with fewer prompts alive joins the one before it."""


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
    def fit(cls, prompt: IntArray, draw: IntArray, generated: IntArray, scores: FloatArray) -> "StageCalibration":
        """Return the calibration of rows [S], each a renewal of an answer: `scores` is the CDF at its true remaining.

        Raises:
            InputError: There is no row of a prompt's last token (`generated` 0).
        """
        starts = _stages(prompt, generated)
        place = np.searchsorted(starts, generated, side="right") - 1
        tables = [_by_prompt(prompt[place == k], scores[place == k]) for k in range(len(starts))]
        answers, first = np.unique(np.column_stack([prompt, draw]), axis=0, return_inverse=True)
        smallest = np.full(len(answers), np.inf)
        np.minimum.at(smallest, first.ravel(), scores)
        return cls(tuple(starts), tuple(tables), _by_prompt(answers[:, 0], smallest))

    def level(self, tau: float, generated: int) -> float:
        """Return the level for a bound made after `generated` tokens that holds by stage; InputError as `threshold`."""
        stage = bisect_right(self.starts, generated) - 1
        return max(self.stages[stage].threshold(tau) - LEVEL_MARGIN, 0.0)

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


def _by_prompt(prompt: IntArray, scores: FloatArray) -> ConformalTable:
    order = np.argsort(prompt, kind="stable")
    ends = np.flatnonzero(np.diff(prompt[order])) + 1
    groups: Sequence[FloatArray] = np.split(scores[order], ends)
    return ConformalTable.fit([group for group in groups if len(group)])
