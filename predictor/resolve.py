"""Which predictor a path names."""

from pathlib import Path

from predictor.spec import LengthPredictorLike


def resolve_predictor(path: str | Path) -> LengthPredictorLike:
    """Return the predictor of a RUN folder, a predictor folder or an export; an export needs no torch.

    Raises:
        InputError: `path` is none of the three.
    """
    folder = Path(path)
    if (folder / "manifest.json").is_file():
        from predictor.serving import LengthPredictor

        return LengthPredictor(folder)
    from predictor.training.checkpoint import load_predictor

    return load_predictor(folder)
