from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import survival_from_hazard_logits
from predictor.training.export import _quiet
from predictor.training.heads import JointHead, log_survival_from_logits, logits_from_log_survival, mean_of_heads

BINS = LengthBins.log_spaced(512, 20)


def test_hazards_and_survival_give_each_other_back() -> None:
    """And agree with what the distribution reads from hazard logits."""
    logits = torch.randn(4, 3, 20, generator=torch.Generator().manual_seed(0)) * 2
    log_survival = log_survival_from_logits(logits)
    np.testing.assert_allclose(log_survival.exp(), survival_from_hazard_logits(logits)[..., 1:], atol=1e-6)
    torch.testing.assert_close(logits_from_log_survival(log_survival), logits, atol=1e-3, rtol=1e-3)


def test_the_mean_of_heads_is_the_mean_of_their_survivals() -> None:
    """The mean of one is that one."""
    logits = torch.randn(3, 2, 4, 20, generator=torch.Generator().manual_seed(0))
    expected = survival_from_hazard_logits(logits).mean(axis=0)
    np.testing.assert_allclose(survival_from_hazard_logits(mean_of_heads(logits)), expected, atol=1e-5)
    assert mean_of_heads(logits[:1]) is not None
    torch.testing.assert_close(mean_of_heads(logits[:1]), logits[0])


@pytest.mark.parametrize("kind", ["hazard", "mixture"])
def test_a_head_gives_finite_logits_and_gradients_for_every_served_model(kind: str) -> None:
    """Also where features are far out."""
    torch.manual_seed(0)
    head = JointHead(kind, 7, 3, BINS, 16, 0.0)  # type: ignore[arg-type]
    head.start_at(np.linspace(-2, 1, 60).reshape(3, 20))
    logits = head(100.0 * torch.randn(5, 7))
    assert logits.shape == (5, 3, 20)
    assert torch.isfinite(logits).all()
    logits.square().mean().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in head.parameters())


def test_the_exported_mixture_stays_finite_far_out(tmp_path: Path) -> None:
    """Where all its weight lies many scales below an edge."""
    torch.manual_seed(0)
    head = JointHead("mixture", 7, 3, BINS, 16, 0.0).eval()
    head.start_at(np.zeros((3, 20)))
    features = 1000.0 * torch.randn(5, 7)
    with _quiet():
        program = torch.onnx.export(head, (features,), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "head.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "head.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: features.numpy()})
    assert np.isfinite(logits).all()
