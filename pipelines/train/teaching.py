"""What teachers predict for the training prompts, as targets of `amin train --teacher`."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from predictor.records.prompt_table import PromptTable
    from predictor.spec import PredictorSpec
    from predictor.training.config import TrainConfig
    from predictor.training.data import EncodedPrompts


def taught_by(
    config: "TrainConfig", train: "EncodedPrompts", table: "PromptTable", spec: "PredictorSpec"
) -> "EncodedPrompts":
    """Return `train` with targets from the teachers as well, asked once.

    Raises:
        InputError: one is no predictor, cannot teach one of `spec`, or predicts what is not a number.
    """
    from pipelines.predict import survivals_with_progress
    from predictor.errors import InputError
    from predictor.resolve import resolve_predictor
    from predictor.training.distillation import taught, teacher_columns

    names = str(config.teacher).split(",")
    teachers = [resolve_predictor(name) for name in names]
    columns = [
        teacher_columns(teacher.spec, spec.models, spec.bins, name)
        for teacher, name in zip(teachers, names, strict=True)
    ]
    survivals = [
        survivals_with_progress(teacher, table.prompts, "ask teacher", table.contexts, shown=config.progress)[:, places]
        for teacher, places in zip(teachers, columns, strict=True)
    ]
    for name, predicted in zip(names, survivals, strict=True):
        if failed := int((~np.isfinite(predicted).all(axis=(1, 2))).sum()):
            raise InputError(
                f"teacher: {name}: no number for {failed} of {len(table.prompts)} prompts; train or export it again"
            )
    return taught(train, np.mean(survivals, axis=0), config.teacher_share)
