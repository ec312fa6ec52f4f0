"""A smaller predictor from a larger one: fewer layers of its encoder, and its predictions as targets."""

import numpy as np

from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import FloatArray
from predictor.errors import InputError
from predictor.spec import PredictorSpec
from predictor.training.data import EncodedPrompts
from predictor.training.network import HazardNetwork, encoder_layers


def keep_layers(network: HazardNetwork, num_layers: int | None) -> None:
    """Leave `num_layers` of the encoder's layers in place, evenly chosen, the first and the last; all where None.

    Raises:
        InputError: the encoder has fewer layers, or its layers are not known as such.
    """
    if num_layers is None:
        return
    layers, config = encoder_layers(network.encoder), network.encoder.config
    if getattr(config, "num_hidden_layers", None) != len(layers):
        raise InputError(f"num_layers: the layers of a {config.model_type} encoder cannot be left out")
    if num_layers > len(layers):
        raise InputError(f"num_layers: the encoder has {len(layers)}, not {num_layers}")
    kept = np.rint(np.linspace(0, len(layers) - 1, num_layers)).astype(int)
    for place in sorted(set(range(len(layers))) - set(kept.tolist()), reverse=True):
        del layers[place]
    config.num_hidden_layers = num_layers


def with_teacher(prompts: EncodedPrompts, survivals: FloatArray, share: float) -> EncodedPrompts:
    """Return `prompts` with targets that mix their draws with a teacher's `survivals` [P, M, K+1] of them.

    A predicted distribution is a hazard count: S_{k-1} of it is at risk in bin k and S_{k-1} - S_k ends there. The
    likelihood is linear in the counts, so that on the mixture it is 1 - `share` times that of the draws plus `share`
    times the cross-entropy with the teacher, which also speaks for the served models that did not answer.
    """
    alive = survivals[..., :-1]
    drawn = (1.0 - share) * prompts.weights
    weights = drawn + share
    scale = 1.0 / np.maximum(weights, 1e-9)[..., None]
    events, at_risk = (
        ((drawn[..., None] * counts + share * predicted) * scale).astype(np.float32)
        for counts, predicted in ((prompts.events, alive - survivals[..., 1:]), (prompts.at_risk, alive))
    )
    return EncodedPrompts(
        prompts.inputs, events, at_risk, weights.astype(np.float32), prompts.output_lens, prompts.pad_token_id
    )


def teacher_columns(teacher: PredictorSpec, models: tuple[str, ...], bins: LengthBins, name: str) -> list[int]:
    """Return the places of the served `models` among those of the teacher `name`.

    Raises:
        InputError: the teacher has other length bins, or does not know one of the models.
    """
    if teacher.bins != bins:
        raise InputError(f"teacher: {name} has other length bins; give its max_length and num_bins, or start from it")
    for model in models:
        if model not in teacher.models:
            raise InputError(f"teacher: {name} does not know {model!r}; it knows {', '.join(teacher.models)}")
    return [teacher.models.index(model) for model in models]
