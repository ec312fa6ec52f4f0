"""Objectives that the censored likelihood was compared with, and `amin train` on one of them.

All act on hazard logits [..., K] and on hazard counts (`predictor.training.losses.hazard_counts`), so that any
objective trains any head and the predictor that comes out is the same kind of thing. A truncated draw counts only where
it is known.
"""

import argparse
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.nn.functional import softplus

from pipelines.files import write_json
from pipelines.train.data import load_splits
from pipelines.train.fit import calibrate, fit_predictor, new_predictor, save
from pipelines.train.results import results_on_test
from predictor.bounds.bins import LengthBins
from predictor.bounds.metrics import CLIPPED_AT
from predictor.records.chat_turns import ChatOptions
from predictor.training.config import TrainConfig
from predictor.training.heads import log_survival_from_logits
from predictor.training.losses import Objective, censored_hazard_nll

PINBALL_LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75)


def main() -> None:
    """Parse, train with the settings of a run but for the objective, measure."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.predictor.objectives", description=__doc__)
    parser.add_argument("objective", choices=sorted(OBJECTIVES), help="what the network is trained for")
    parser.add_argument("--like", type=Path, required=True, help="run of amin train whose settings and data are taken")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    args = parser.parse_args()
    stored = yaml.safe_load((args.like / "config.yaml").read_text())
    config = TrainConfig(**{field.name: stored[field.name] for field in fields(TrainConfig) if field.name in stored})
    splits, _ = load_splits(config, ChatOptions())
    length_predictor = new_predictor(config, ChatOptions(), splits["train"])
    loss_of = objective(args.objective, length_predictor.spec.bins)
    fit_predictor(config, splits, length_predictor, args.out, resume=False, objective=loss_of)
    calibrate(length_predictor, splits["calibration"], shown=config.progress)
    save(config, length_predictor, args.out)
    results = results_on_test(config, splits, length_predictor)
    write_json(
        args.out / "metrics.json", results.metrics(config.tau, min(length_predictor.spec.bins.max_length, CLIPPED_AT))
    )


def objective(name: str, bins: LengthBins) -> Objective:
    """Return the objective `name` of `OBJECTIVES` for lengths on `bins`."""
    return partial(OBJECTIVES[name], bins)


def likelihood(bins: LengthBins, logits: Tensor, events: Tensor, at_risk: Tensor, weights: Tensor) -> Tensor:
    """Return the censored negative log-likelihood, in nats a draw: what `amin train` takes."""
    return censored_hazard_nll(logits, events, at_risk, weights)


def ordinal(bins: LengthBins, logits: Tensor, events: Tensor, at_risk: Tensor, weights: Tensor) -> Tensor:
    """Return the cross-entropy, in nats, of the questions "longer than e_k?", the mean over the edges.

    One binary task for each edge, as in ordinal regression (Frank and Hall 2001; Niu et al. 2016).
    """
    ended, survived = known_shares(events, at_risk)
    log_alive = log_survival_from_logits(logits).clamp(-30.0, -1e-6)
    log_ended = (-torch.expm1(log_alive)).log()
    return _weighted(-(survived * log_alive + ended * log_ended).mean(dim=-1), weights)


def pinball(bins: LengthBins, logits: Tensor, events: Tensor, at_risk: Tensor, weights: Tensor) -> Tensor:
    """Return the pinball loss in tokens, the mean over `PINBALL_LEVELS`, divided by the mean of log-spaced widths.

    With q the predicted quantile, the loss is up to a constant the integral from 0 to q of (share ended by x) - level,
    where a draw ends in the middle of its bin; a truncated one leaves the integral where it was cut (Powell 1986).
    """
    ended, survived = known_shares(events, at_risk)
    edges = torch.as_tensor(bins.as_array(), dtype=logits.dtype, device=logits.device)
    widths = edges.diff()
    cdf = 1.0 - torch.exp(log_survival_from_logits(logits))
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf], dim=-1)
    total = torch.zeros_like(weights)
    for level in PINBALL_LEVELS:
        right = (cdf <= level).sum(dim=-1, keepdim=True).clamp(1, bins.num_bins)
        below, above = cdf.gather(-1, right - 1), cdf.gather(-1, right)
        share = ((level - below) / (above - below).clamp(min=1e-6)).clamp(0.0, 1.0)
        slope = (ended - 0.5 * events) * (1.0 - level) - (survived + 0.5 * events) * level
        whole = (slope * widths).cumsum(dim=-1)
        whole = torch.cat([torch.zeros_like(whole[..., :1]), whole], dim=-1)
        inside = slope.gather(-1, right - 1) * share * widths[right - 1]
        total = total + (whole.gather(-1, right - 1) + inside).squeeze(-1)
    return _weighted(total / len(PINBALL_LEVELS), weights) / float(widths.mean())


def ranking(bins: LengthBins, logits: Tensor, events: Tensor, at_risk: Tensor, weights: Tensor) -> Tensor:
    """Return the likelihood plus a pairwise logistic loss on expected log lengths, among a batch's prompts, in nats.

    RankNet (Burges et al. 2005); the likelihood keeps the scale, which a ranking alone leaves open.
    """
    edges = bins.as_array()
    middles = torch.as_tensor(np.log((edges[1:] + edges[:-1] + 1) / 2), dtype=logits.dtype, device=logits.device)
    steps = torch.cat([middles[:1], middles.diff()])
    alive = torch.exp(log_survival_from_logits(logits))
    score = (steps * torch.cat([torch.ones_like(alive[..., :1]), alive[..., :-1]], dim=-1)).sum(dim=-1)
    observed = (steps * at_risk).sum(dim=-1)
    known = weights.unsqueeze(0) * weights.unsqueeze(1) * (observed.unsqueeze(0) > observed.unsqueeze(1))
    margins = score.unsqueeze(0) - score.unsqueeze(1)
    pairs = softplus(-margins) * known
    return censored_hazard_nll(logits, events, at_risk, weights) + pairs.sum() / known.sum().clamp(min=1.0)


OBJECTIVES: dict[str, Callable[[LengthBins, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "likelihood": likelihood,
    "ordinal": ordinal,
    "pinball": pinball,
    "ranking": ranking,
}


def known_shares(events: Tensor, at_risk: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shares of draws, [..., K], known to have ended by each edge e_k and known to have survived it."""
    return events.cumsum(dim=-1), at_risk - events


def _weighted(per_prompt: Tensor, weights: Tensor) -> Tensor:
    return (weights * per_prompt).sum() / weights.sum()


if __name__ == "__main__":
    main()
