"""What a predictor must beat: the marginal quantile, boosting on TF-IDF features, a point regressor, a classifier."""

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from predictor.bounds.bins import IntArray
from predictor.bounds.calibration import ConformalTable
from predictor.bounds.censoring import complete_weights
from predictor.bounds.distribution import FloatArray
from predictor.quality import MeasuredBounds
from predictor.records.records import Records

NUM_COMPONENTS = 64
NUM_CLASSES = 10


def measure_baselines(
    train: Records, calibration: Records, test: Records, tau: float, max_length: int, seed: int = 0
) -> dict[str, MeasuredBounds]:
    """Return the bounds that each baseline, by name, gives the records of one served model in `test`.

    `constant` is the conformal quantile of the calibration lengths. `tfidf-gbm` fits quantile boosting to the log
    length of every training draw, clipped at `max_length`; `tfidf-gbm-conformal` shifts it by the conformal quantile
    of the calibration residuals, and `point-conformal` the boosted median likewise, as a point regressor would be.
    `class-edge` is the lower edge of the likeliest of ten length classes with equally many training draws (SSJF and
    others schedule by such a class).
    """
    size = len(test)
    weights = complete_weights(calibration.output_lens, calibration.is_truncated)
    constant = np.full(size, max(1.0, ConformalTable.fit(calibration.output_lens, weights).threshold(tau)))
    results = {"constant": MeasuredBounds(test, constant, np.full(size, _pooled_median(train.output_lens)))}
    # Boosting on a few thousand rows is 100 times slower where its threads compete with another process for a core.
    with threadpool_limits(limits=1):
        features, others = _text_features(train, [calibration, test], seed)
        draws, rows = _draws(train, max_length), np.repeat(np.arange(len(train)), [len(d) for d in train.output_lens])
        lows, medians = _boosted(features[rows], draws, others, tau, seed)
        results["class-edge"] = MeasuredBounds(test, *_classified(features[rows], draws, others[1]))

    def shift(predicted: FloatArray) -> float:
        draws = zip(calibration.output_lens, predicted, strict=True)
        return ConformalTable.fit([np.log(lengths) - value for lengths, value in draws], weights).threshold(tau)

    for name, values in (
        ("tfidf-gbm", lows[1]),
        ("tfidf-gbm-conformal", lows[1] + shift(lows[0])),
        ("point-conformal", medians[1] + shift(medians[0])),
    ):
        # The margin keeps the draw that set the shift on the covered side of rounding.
        bounds = np.maximum(np.floor(np.exp(values) + 1e-9), 1.0)
        results[name] = MeasuredBounds(test, bounds, np.exp(medians[1]))
    return results


def _draws(train: Records, max_length: int) -> tuple[FloatArray, FloatArray]:
    """Return the length of every draw, clipped, and its weight: prompts weigh the same."""
    weights = [np.full(len(draws), 1.0 / len(draws)) for draws in train.output_lens]
    return np.minimum(np.concatenate(train.output_lens), max_length).astype(np.float64), np.concatenate(weights)


def _boosted(
    features: FloatArray, draws: tuple[FloatArray, FloatArray], others: Sequence[FloatArray], tau: float, seed: int
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Return the predicted quantiles of log length, `tau` and 0.5, for each of `others`."""
    predicted: list[list[FloatArray]] = []
    for level in (tau, 0.5):
        model = HistGradientBoostingRegressor(
            loss="quantile", quantile=level, max_iter=150, learning_rate=0.06, max_leaf_nodes=15, random_state=seed
        )
        model.fit(features, np.log(draws[0]), sample_weight=draws[1])
        predicted.append([np.asarray(model.predict(matrix)) for matrix in others])
    return predicted[0], predicted[1]


def _classified(
    features: FloatArray, draws: tuple[FloatArray, FloatArray], test: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the lower edge and the middle of the class that logistic regression finds likeliest, in tokens."""
    lengths, weights = draws
    edges = np.unique(np.quantile(lengths, np.linspace(0.0, 1.0, NUM_CLASSES + 1)))
    classes = np.searchsorted(edges[1:-1], lengths, side="right")
    if len(np.unique(classes)) < 2:
        return np.full(len(test), edges[0]), np.full(len(test), edges[0])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    found = model.fit(features, classes, logisticregression__sample_weight=weights).predict(test)
    middles = [np.median(lengths[classes == place]) if np.any(classes == place) else edges[place] for place in found]
    return np.maximum(edges[found], 1.0), np.asarray(middles)


def _text_features(train: Records, others: Sequence[Records], seed: int) -> tuple[FloatArray, list[FloatArray]]:
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=50_000)
    sizes = [np.log1p([[len(prompt)] for prompt in records.prompts]) for records in (train, *others)]
    words = vectorizer.build_analyzer()
    if len({word for prompt in train.prompts for word in words(prompt)}) < 2:
        return sizes[0], sizes[1:]
    matrix = vectorizer.fit_transform(train.prompts)
    svd = TruncatedSVD(min(NUM_COMPONENTS, matrix.shape[1] - 1, len(train) - 1), random_state=seed).fit(matrix)
    texts = [svd.transform(matrix), *(svd.transform(vectorizer.transform(records.prompts)) for records in others)]
    features = [np.hstack([text, size]) for text, size in zip(texts, sizes, strict=True)]
    return features[0], features[1:]


def _pooled_median(output_lens: Sequence[IntArray]) -> float:
    return float(np.median(np.concatenate(output_lens)))
