"""The first stage of training: statistics of the inputs, and heads trained alone on states computed once."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from predictor.bounds.bins import IntArray, LengthBins
from predictor.progress import tracked
from predictor.prompts.features import FloatMatrix
from predictor.prompts.tokens import PromptInputs, batches_by_length
from predictor.training.config import TrainConfig
from predictor.training.data import TARGET_NAMES, EncodedPrompts
from predictor.training.heads import JointHead, mean_of_heads
from predictor.training.losses import marginal_hazard_logits, mean_pinball_loss
from predictor.training.network import HazardNetwork
from predictor.training.objectives import Objective, objective

# So many prompts are enough for statistics and a start, and their states fit in memory.
MAX_PROMPTS = 20_000  # of a split
BATCH_SIZE = 64
AVERAGE_DECAY = 0.99
MAX_WARMUP_STEPS = 100
# Of the peak learning rate, by kind of head.
LEARNING_RATE_FACTORS = {"hazard": 4.0, "mixture": 2.0}
# A feature that fewer training prompts than this have is left out.
MIN_DIFFERENT = 5


@dataclass(frozen=True, slots=True)
class PooledPrompts:
    """P prompts as the heads take them: pooled states [P, 2 W], features [P, F + V], and the encoded prompts."""

    pooled: Tensor
    features: Tensor
    prompts: EncodedPrompts

    def inputs(self, rows: IntArray) -> tuple[Tensor, Tensor]:
        """Return pooled states and features of the prompts at `rows`."""
        return self.pooled[rows], self.features[rows]

    def targets(self, rows: IntArray) -> list[Tensor]:
        """Return events, at risk and weights of the prompts at `rows`."""
        found = self.prompts.targets(rows)
        return [found[name].to(self.pooled.device) for name in TARGET_NAMES]


def start_network(
    network: HazardNetwork, bins: LengthBins, train: EncodedPrompts, validation: EncodedPrompts, pad_token_id: int,
    config: TrainConfig, *, is_new: bool,
) -> float:  # fmt: skip
    """Fit the scaling and train the heads in place, on the network's device; return the validation pinball loss.

    A network that is not new keeps its scaling and goes on from its heads; where layers were left out of its encoder,
    the states are scaled anew.
    """
    rng = np.random.default_rng([config.seed, 1])
    samples = [np.sort(rng.permutation(len(part))[:MAX_PROMPTS]) for part in (train, validation)]
    parts = [part.select(sample) for part, sample in zip((train, validation), samples, strict=True)]
    pooled = [pool_prompts(network, part, pad_token_id, config) for part in parts]
    torch.manual_seed(config.seed)
    if is_new:
        fit_scaling(network, pooled[0], config.seed)
        logits = marginal_hazard_logits(parts[0].events, parts[0].at_risk)
        for head in network.heads:
            assert isinstance(head, JointHead)
            head.start_at(logits)
    elif config.num_layers is not None:
        fit_state_scaling(network, pooled[0])
    train_heads(network, bins, pooled[0], pooled[1], config, rng)
    return validation_pinball(network, bins, pooled[1], config.tau)


def pool_prompts(
    network: HazardNetwork, prompts: EncodedPrompts, pad_token_id: int, config: TrainConfig
) -> PooledPrompts:
    """Return the prompts with their pooled states, computed on the device of the network and kept there."""
    network.eval()
    inputs, device = prompts.inputs, next(network.parameters()).device
    batches = list(batches_by_length(inputs.token_ids, BATCH_SIZE))
    pooled = torch.zeros(len(inputs), network.scaling.pooled_mean.shape[0], device=device)
    features = torch.zeros(len(inputs), network.shape.num_features + inputs.num_terms, device=device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
        for indices in tracked(batches, "read prompts", "batch", len(batches), shown=config.progress):
            batch = (torch.as_tensor(array, device=device) for array in inputs.batch(indices, pad_token_id))
            input_ids, attention_mask, features[indices] = batch
            pooled[indices] = network.pooled(input_ids, attention_mask).float()
    return PooledPrompts(pooled, features, prompts)


def fit_scaling(network: HazardNetwork, train: PooledPrompts, seed: int) -> None:
    """Set the scaling of `network` to the statistics of `train`."""
    fit_state_scaling(network, train)
    scaling = network.scaling
    text = train.features[:, : network.shape.num_features]
    num_different = (text != text[:1]).sum(dim=0)
    scaling.feature_mean.copy_(text.mean(dim=0))
    known = 1.0 / (text.std(dim=0, correction=0) + 1e-4)
    scaling.feature_scale.copy_(torch.where(num_different >= MIN_DIFFERENT, known, 0.0))
    idf, components = fit_projection(train.prompts.inputs, network.shape.num_components, seed)
    scaling.term_idf.copy_(torch.from_numpy(idf))
    scaling.term_components[:, : components.shape[1]].copy_(torch.from_numpy(components))
    with torch.no_grad():
        projected = scaling(train.pooled, train.features)[:, -network.shape.num_components :]
        scaling.component_mean.copy_(projected.mean(dim=0))
        scaling.component_scale.fill_(1.0 / float(projected.std(correction=0).clamp(min=1e-6)))


def fit_state_scaling(network: HazardNetwork, train: PooledPrompts) -> None:
    """Set the scaling of the pooled states to their statistics in `train`."""
    width = train.pooled.shape[1] // 2
    spread = train.pooled.std(dim=0, correction=0).view(2, width).mean(dim=1).clamp(min=1e-6)
    network.scaling.pooled_mean.copy_(train.pooled.mean(dim=0))
    network.scaling.pooled_scale.copy_((1.0 / spread).repeat_interleave(width))


def fit_projection(inputs: PromptInputs, num_components: int, seed: int) -> tuple[FloatMatrix, FloatMatrix]:
    """Return the inverse document frequencies [V] of the terms and the components [V, C] of their weights.

    C falls short of `num_components` where there are fewer prompts or terms.
    """
    from scipy.sparse import csr_matrix, diags
    from sklearn.decomposition import TruncatedSVD

    starts = np.concatenate([[0], np.cumsum([len(places) for places, _ in inputs.terms])])
    places, values = (np.concatenate([term[side] for term in inputs.terms]) for side in (0, 1))
    matrix = csr_matrix((values, places, starts), shape=(len(inputs), inputs.num_terms))
    idf = np.log((1 + len(inputs)) / (1 + np.bincount(places, minlength=inputs.num_terms))) + 1.0
    num_components = min(num_components, len(inputs) - 1, inputs.num_terms - 1)
    if num_components < 1:
        return idf.astype(np.float32), np.zeros((inputs.num_terms, 0), dtype=np.float32)
    weighted = matrix @ diags(idf)
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    svd = TruncatedSVD(num_components, random_state=seed).fit(diags(1.0 / np.maximum(norms, 1e-6)) @ weighted)
    return idf.astype(np.float32), svd.components_.T.astype(np.float32).copy()


def train_heads(
    network: HazardNetwork,
    bins: LengthBins,
    train: PooledPrompts,
    validation: PooledPrompts,
    config: TrainConfig,
    rng: np.random.Generator,
) -> None:
    """Train the heads in place and leave them at the epoch of the best validation loss."""
    parameters = list(network.heads.parameters())
    peaks = [config.head_lr * LEARNING_RATE_FACTORS[kind] for kind in network.shape.heads]
    groups = [{"params": list(head.parameters()), "lr": peak} for head, peak in zip(network.heads, peaks, strict=True)]
    optimizer = AdamW(groups, weight_decay=config.weight_decay)
    averaged = [parameter.detach().clone() for parameter in parameters]
    loss_of = objective(config.objective, bins)
    best, best_weights = validation_loss(network, validation, loss_of), averaged
    num_steps = max(1, math.ceil(len(train.prompts) / BATCH_SIZE))
    step, total = 0, config.head_epochs * num_steps
    for _ in tracked(range(config.head_epochs), "train heads", "epoch", config.head_epochs, shown=config.progress):
        network.train()
        for rows in np.array_split(rng.permutation(len(train.prompts)), num_steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate_factor(step, total)
            heads_loss(network, train, rows, loss_of).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            keep = min(AVERAGE_DECAY, (step + 1) / (step + 10))
            averaged = [torch.lerp(p.detach(), old, keep) for p, old in zip(parameters, averaged, strict=True)]
        current = [parameter.detach().clone() for parameter in parameters]
        set_weights(parameters, averaged)
        if (loss := validation_loss(network, validation, loss_of)) < best:
            best, best_weights = loss, averaged
        set_weights(parameters, current)
    set_weights(parameters, best_weights)


def rate_factor(step: int, total: int) -> float:
    """Return the share of the peak learning rate at a step: up in the warm-up, down to zero as a cosine."""
    num_warmup = max(1, min(MAX_WARMUP_STEPS, total // 4))
    return min(1.0, (step + 1) / num_warmup) * (0.5 + 0.5 * math.cos(math.pi * step / total))


def heads_loss(network: HazardNetwork, train: PooledPrompts, rows: IntArray, loss_of: Objective) -> Tensor:
    """Return the mean loss of the heads on the prompts at `rows`."""
    logits = network.head_logits(*train.inputs(rows))
    targets = train.targets(rows)
    return torch.stack([loss_of(head, *targets) for head in logits]).mean()


def validation_loss(network: HazardNetwork, validation: PooledPrompts, loss_of: Objective) -> float:
    """Return the loss of the network as it predicts; puts it in evaluation mode."""
    network.eval()
    with torch.no_grad():
        logits = mean_of_heads(network.head_logits(validation.pooled, validation.features))
        return float(loss_of(logits, *validation.targets(np.arange(len(validation.prompts)))))


def validation_pinball(network: HazardNetwork, bins: LengthBins, validation: PooledPrompts, tau: float) -> float:
    """Return the pinball loss at `tau` of the network as it predicts, in tokens; puts it in evaluation mode."""
    network.eval()
    with torch.no_grad():
        logits = mean_of_heads(network.head_logits(validation.pooled, validation.features)).cpu().numpy()
    answered = validation.prompts.weights > 0
    return mean_pinball_loss(bins, logits[answered], validation.prompts.output_lens[answered], tau)


def set_weights(parameters: list[torch.nn.Parameter], values: list[Tensor]) -> None:
    """Set `parameters` to `values`."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
