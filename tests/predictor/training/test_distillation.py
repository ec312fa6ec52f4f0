from pathlib import Path

import numpy as np
import pytest
import torch

from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import FloatArray, survival_from_hazard_logits
from predictor.errors import InputError
from predictor.prompts.tokens import PromptInputs
from predictor.spec import PredictorSpec
from predictor.training.checkpoint import load_encoder, load_predictor, save_predictor
from predictor.training.data import EncodedPrompts
from predictor.training.distillation import keep_layers, with_teacher
from predictor.training.losses import censored_hazard_nll
from predictor.training.network import HazardNetwork, NetworkShape

BINS = LengthBins.log_spaced(64, 6)


def prompts_and_teacher() -> tuple[EncodedPrompts, FloatArray]:
    """Four prompts of two served models, one of which has not answered the first prompt; a teacher's survivals."""
    rng = np.random.default_rng(0)
    events = rng.dirichlet(np.ones(6), (4, 2)).astype(np.float32)
    at_risk = events[..., ::-1].cumsum(axis=-1)[..., ::-1].copy()
    weights = np.ones((4, 2), dtype=np.float32)
    weights[0, 1] = events[0, 1] = at_risk[0, 1] = 0
    inputs = PromptInputs([[2, 3]] * 4, np.zeros((4, 1), dtype=np.float32), [], 0)
    survivals = survival_from_hazard_logits(rng.normal(size=(4, 2, 6)))
    return EncodedPrompts(inputs, events, at_risk, weights, np.ones((4, 2, 1), dtype=np.float32)), survivals


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_that_of_the_draws_and_that_of_the_teacher_mixed(share: float) -> None:
    """The teacher's cross-entropy is over bins and what lies beyond them, and also for who has not answered."""
    prompts, survivals = prompts_and_teacher()
    mixed = with_teacher(prompts, survivals, share)
    logits = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student = np.diff(1.0 - survival_from_hazard_logits(logits.numpy()), axis=-1, append=1.0)
    teacher = np.diff(1.0 - survivals, axis=-1, append=1.0)
    entropy = float(-(teacher * np.log(student)).sum())
    targets = [torch.from_numpy(part).double() for part in (prompts.events, prompts.at_risk, prompts.weights)]
    drawn = float(censored_hazard_nll(logits, *targets) * prompts.weights.sum())
    targets = [torch.from_numpy(part).double() for part in (mixed.events, mixed.at_risk, mixed.weights)]
    found = float(censored_hazard_nll(logits, *targets) * mixed.weights.sum())
    assert found == pytest.approx((1 - share) * drawn + share * entropy, rel=1e-5)
    assert mixed.output_lens is prompts.output_lens


def test_without_a_teachers_share_the_targets_stay() -> None:
    """To the last bit."""
    prompts, survivals = prompts_and_teacher()
    mixed = with_teacher(prompts, survivals, 0.0)
    for name in ("events", "at_risk", "weights"):
        assert np.array_equal(getattr(mixed, name), getattr(prompts, name))


def test_layers_left_out_stay_out_when_saved(tiny_encoder: Path, tmp_path: Path) -> None:
    """One of two: the first; none of the others' weights is written."""
    encoder, tokenizer = load_encoder(str(tiny_encoder))
    network = HazardNetwork(encoder, BINS, NetworkShape(2, 0, 3, 8, ("hazard",))).eval()
    first = network.encoder.encoder.layer[0].output.dense.weight.clone()
    with pytest.raises(InputError, match="num_layers: the encoder has 2, not 3"):
        keep_layers(network, 3)
    keep_layers(network, None)
    keep_layers(network, 1)
    save_predictor(tmp_path, network, tokenizer, PredictorSpec(BINS, 8, 0, ("a", "b"), "a", (), {}, {}))
    loaded = load_predictor(tmp_path).network
    assert len(loaded.encoder.encoder.layer) == 1
    torch.testing.assert_close(loaded.encoder.encoder.layer[0].output.dense.weight, first)
