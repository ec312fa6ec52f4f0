import numpy as np
import pytest
import torch

from pipelines.studies.predictor.objectives import OBJECTIVES, PINBALL_LEVELS, objective
from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import quantile, survival_from_hazard_logits
from predictor.training.losses import hazard_counts

BINS = LengthBins((0, 2, 5, 9, 20))
DRAWS = [
    np.array([1, 4, 4, 7, 7, 7, 12, 30]),
    np.array([9, 9, 9, 9, 10, 16, 18, 19]),
    np.array([1, 1, 2, 2, 2, 3, 4, 5]),
]


def counts(truncated: bool = False) -> list[torch.Tensor]:
    """Events, at risk [3, 1, K] and weights [3, 1] of the draws, the last two of each truncated where asked."""
    is_truncated = [np.arange(8) >= 6 if truncated else np.zeros(8, dtype=bool) for _ in DRAWS]
    tables = (torch.as_tensor(table).unsqueeze(1) for table in hazard_counts(BINS, DRAWS, is_truncated))
    return [*tables, torch.ones(3, 1, dtype=torch.float64)]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("truncated", [False, True])
def test_each_objective_trains_towards_the_draws(name: str, truncated: bool) -> None:
    """Its minimum by gradient descent puts the three prompts' predicted medians in the order of their lengths."""
    logits = torch.zeros(3, 1, BINS.num_bins, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    loss_of, targets, losses = objective(name, BINS), counts(truncated), []
    for _ in range(400):
        loss = loss_of(logits, *targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert np.all(np.isfinite(losses))
    medians = quantile(BINS, survival_from_hazard_logits(logits.detach().numpy()[:, 0]), 0.5)
    assert medians[2] < medians[0] < medians[1]


@pytest.mark.parametrize("name", ["likelihood", "ordinal"])
def test_the_shares_of_the_draws_are_a_minimum(name: str) -> None:
    """Proper: with as many parameters as bins the best hazards are the draws' own, events / at risk."""
    events, at_risk, weights = counts()
    hazards = ((events + 1e-3) / (at_risk + 2e-3)).clamp(1e-3, 1 - 1e-3)
    best = torch.logit(hazards)
    loss_of = objective(name, BINS)
    at_best = loss_of(best, events, at_risk, weights)
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        moved = best + 0.5 * torch.randn(best.shape, generator=rng, dtype=torch.float64)
        assert loss_of(moved, events, at_risk, weights) > at_best


def test_pinball_is_an_integral_up_to_the_quantile() -> None:
    """The integral of (share ended) - level up to the quantile that `predictor.bounds.distribution` reads."""
    draws = [np.array([2, 5, 5, 9, 20, 20]), np.array([9, 9, 2, 20, 5, 5])]
    tables = hazard_counts(BINS, draws, [np.zeros(6, dtype=bool)] * 2)
    events, at_risk = (torch.as_tensor(table).unsqueeze(1) for table in tables)
    rng = np.random.default_rng(0)
    widths = np.diff(BINS.as_array())

    def naive(logits: np.ndarray) -> float:
        survival = survival_from_hazard_logits(logits)
        total = 0.0
        for level in PINBALL_LEVELS:
            bounds = quantile(BINS, survival, level)
            for prompt, bound in enumerate(bounds):
                share = np.cumsum(events[prompt, 0].numpy()) - 0.5 * events[prompt, 0].numpy()
                reach = np.clip(bound - BINS.as_array()[:-1], 0, widths)
                total += float(np.sum(reach * (share - level)))
        return total / len(PINBALL_LEVELS) / len(draws) / widths.mean()

    for _ in range(10):
        logits = rng.normal(0, 1, (2, BINS.num_bins))
        loss = objective("pinball", BINS)(
            torch.as_tensor(logits).unsqueeze(1), events, at_risk, torch.ones(2, 1).double()
        )
        assert loss.item() == pytest.approx(naive(logits), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_served_model_that_did_not_answer_counts_for_nothing(name: str) -> None:
    """Its weight is zero, whatever the network says for it."""
    events, at_risk, _ = counts()
    weights = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)
    logits = torch.zeros(3, 1, BINS.num_bins, dtype=torch.float64)
    other = logits.clone()
    other[2] = 3.0
    loss_of = objective(name, BINS)
    torch.testing.assert_close(loss_of(logits, events, at_risk, weights), loss_of(other, events, at_risk, weights))
