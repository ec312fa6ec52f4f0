"""What comes before training: states of the prompts, the scaling of the inputs, and where the heads begin."""

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags
from sklearn.decomposition import TruncatedSVD

from predictor.bounds.bins import IntArray
from predictor.progress import tracked
from predictor.prompts.features import FloatMatrix
from predictor.prompts.tokens import PromptInputs, batches_by_length
from predictor.training.config import TrainConfig
from predictor.training.data import EncodedPrompts, PooledPrompts
from predictor.training.losses import marginal_hazard_logits
from predictor.training.network import FrozenNetwork, HazardNetwork

# So many prompts are enough for statistics and a start, and their states fit in memory.
MAX_PROMPTS = 20_000  # of a split
BATCH_SIZE = 64
# A feature that fewer training prompts than this have is left out.
MIN_DIFFERENT = 5


def few(prompts: EncodedPrompts, rng: np.random.Generator) -> EncodedPrompts:
    """Return at most `MAX_PROMPTS` of the prompts, drawn at random, in their order."""
    chosen: IntArray = np.sort(rng.permutation(len(prompts))[:MAX_PROMPTS])
    return prompts.select(chosen)


def start_heads(network: HazardNetwork, train: PooledPrompts, config: TrainConfig, *, is_new: bool) -> None:
    """Fit the scaling and let the heads begin at the marginal distribution of each served model, in place.

    A network that is not new keeps its scaling and goes on from its heads; where layers were left out of its encoder,
    the states are scaled anew.
    """
    torch.manual_seed(config.seed)
    if is_new:
        fit_scaling(network, train, config.seed)
        start_at_marginal(network, train)
    elif config.num_layers is not None:
        fit_state_scaling(network, train)


def start_at_marginal(network: HazardNetwork, train: PooledPrompts) -> None:
    """Let the heads begin at the marginal distribution of each served model, in place."""
    logits = marginal_hazard_logits(train.prompts.events, train.prompts.at_risk)
    for head in FrozenNetwork(network).each_head():
        head.start_at(logits)


def pool_prompts(network: HazardNetwork, prompts: EncodedPrompts, config: TrainConfig) -> PooledPrompts:
    """Return the prompts with their pooled states, computed on the device of the network."""
    network.eval()
    inputs, device = prompts.inputs, next(network.parameters()).device
    batches = list(batches_by_length(inputs.token_ids, BATCH_SIZE))
    pooled = torch.zeros(len(inputs), network.scaling.pooled_mean.shape[0])
    features = torch.zeros(len(inputs), network.shape.num_features + inputs.num_terms)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
        for indices in tracked(batches, "read prompts", "batch", len(batches), shown=config.progress):
            batch = (torch.as_tensor(array, device=device) for array in inputs.batch(indices, prompts.pad_token_id))
            input_ids, attention_mask, read = batch
            features[indices] = read.cpu()
            pooled[indices] = network.pooled(input_ids, attention_mask).float().cpu()
    return PooledPrompts(pooled, features, prompts)


def fit_scaling(network: HazardNetwork, train: PooledPrompts, seed: int) -> None:
    """Set the scaling of `network` to the statistics of `train`."""
    fit_state_scaling(network, train)
    scaling, count = network.scaling, network.shape.num_features
    fit_feature_scaling(network, train.features[:, :count])
    idf, components = fit_projection(train.prompts.inputs, network.shape.num_components, seed)
    scaling.term_idf.copy_(torch.from_numpy(idf))
    scaling.term_components[:, : components.shape[1]].copy_(torch.from_numpy(components))
    with torch.no_grad():
        fit_component_scaling(network, scaling.project(train.features[:, count:]))


def fit_feature_scaling(network: HazardNetwork, features: torch.Tensor) -> None:
    """Set the scaling of the features [P, F] to their statistics; rare ones are left out."""
    num_different = (features != features[:1]).sum(dim=0)
    network.scaling.feature_mean.copy_(features.mean(dim=0))
    known = 1.0 / (features.std(dim=0, correction=0) + 1e-4)
    network.scaling.feature_scale.copy_(torch.where(num_different >= MIN_DIFFERENT, known, 0.0))


def fit_component_scaling(network: HazardNetwork, components: torch.Tensor) -> None:
    """Set the scaling of the components [P, C] of terms, as they are projected, to their statistics."""
    network.scaling.component_mean.copy_(components.mean(dim=0))
    network.scaling.component_scale.fill_(1.0 / float(components.std(correction=0).clamp(min=1e-6)))


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
