import numpy as np
import pytest
import torch

from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import survival_from_hazard_logits
from predictor.training.losses import censored_hazard_nll, hazard_counts, marginal_hazard_logits

BINS = LengthBins((0, 2, 5, 9, 20))


def naive_nll(logits: np.ndarray, lengths: np.ndarray, truncated: np.ndarray) -> float:
    """The mean over draws of -log P(draw), written out from the survival."""
    survival = survival_from_hazard_logits(logits[None])[0]
    total = 0.0
    for length, is_truncated in zip(lengths, truncated, strict=True):
        if is_truncated or length > BINS.max_length:
            last = max(k for k, edge in enumerate(BINS.edges) if edge <= length)
            total -= np.log(survival[last])
        else:
            k = int(BINS.index(length))
            total -= np.log(survival[k] - survival[k + 1])
    return total / len(lengths)


def test_counts_give_the_naive_likelihood() -> None:
    """Exact, truncated on and between edges, and longer than the last edge."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 30, 6) for _ in range(20)] + [np.array([5, 6, 1, 20, 21])]
    truncated = [rng.random(6) < 0.3 for _ in range(20)] + [np.array([True, True, True, True, False])]
    logits = rng.normal(0, 1, (21, BINS.num_bins))
    events, at_risk = hazard_counts(BINS, lengths, truncated)
    loss = censored_hazard_nll(*(torch.as_tensor(x) for x in (logits, events, at_risk)))
    expected = [naive_nll(*row) for row in zip(logits, lengths, truncated, strict=True)]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-9)


def test_weights_weigh_prompts() -> None:
    """A weight of zero leaves a prompt out."""
    events, at_risk = hazard_counts(BINS, [np.array([3]), np.array([8])], [np.array([False])] * 2)
    tensors = [torch.as_tensor(x) for x in (np.zeros((2, 4)), events, at_risk)]
    alone = censored_hazard_nll(*(x[:1] for x in tensors))
    torch.testing.assert_close(censored_hazard_nll(*tensors, weights=torch.tensor([2.0, 0.0])), alone)


def test_the_marginal_hazard_minimises_the_loss_of_a_constant() -> None:
    """Up to its smoothing: the gradient there is small compared with that of any other start."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 25, 4) for _ in range(3000)]
    events, at_risk = (torch.as_tensor(x) for x in hazard_counts(BINS, lengths, [np.zeros(4, dtype=bool)] * 3000))
    logits = torch.as_tensor(marginal_hazard_logits(events.numpy(), at_risk.numpy())).requires_grad_()
    censored_hazard_nll(logits.expand(3000, -1), events, at_risk).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-3
