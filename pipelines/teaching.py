"""What teachers predict for the training prompts, as targets of `amin train --teacher`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from predictor.config import TrainConfig
    from predictor.data import EncodedPrompts
    from predictor.spec import PredictorSpec


def taught_by(
    config: "TrainConfig", train: "EncodedPrompts", prompts: Sequence[str], spec: "PredictorSpec"
) -> "EncodedPrompts":
    """Return `train` with targets from the teachers as well, asked once.

    Raises:
        InputError: one is no predictor, or cannot teach one of `spec`.
    """
    from pipelines.predict import survivals_with_progress
    from predictor.checkpoint import resolve_predictor
    from predictor.distillation import taught, teacher_columns

    names = str(config.teacher).split(",")
    teachers = [resolve_predictor(name) for name in names]
    columns = [
        teacher_columns(teacher.spec, spec.models, spec.bins, name)
        for teacher, name in zip(teachers, names, strict=True)
    ]
    survivals = [
        survivals_with_progress(teacher, prompts, "ask teacher", shown=config.progress)[:, places]
        for teacher, places in zip(teachers, columns, strict=True)
    ]
    return taught(train, np.mean(survivals, axis=0), config.teacher_share)
