"""The network: a text encoder, text features, and heads that answer for all served models together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import FloatArray, survival_from_hazard_logits
from predictor.prompts.features import NAMES
from predictor.prompts.request_features import FEATURE_NAMES, HAS_TARGET, LOG_TARGET, Contexts
from predictor.prompts.tokens import INPUT_NAMES, PromptInputs, batches_by_length, encode_prompts
from predictor.spec import LengthPredictorLike, PredictorSpec
from predictor.training.heads import JointHead, mean_of_heads

MAX_SCALED_FEATURE = 4.0


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """What decides the shapes of the weights outside the encoder."""

    num_models: int
    num_terms: int
    num_components: int
    hidden_size: int
    heads: tuple[str, ...]
    num_features: int = len(FEATURE_NAMES)

    def to_dict(self) -> dict[str, Any]:
        """Return the shape for JSON."""
        return asdict(self)

    @property
    def reads_target(self) -> bool:
        """Whether the length that a request asks for is among the features."""
        return self.num_features > max(HAS_TARGET, LOG_TARGET)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "NetworkShape":
        """Return the shape that `to_dict` wrote."""
        return cls(**{"num_features": len(NAMES), **value, "heads": tuple(value["heads"])})


class InputScaling(nn.Module):
    """Brings what the heads read to one scale; statistics of the training prompts, fitted once, not trained.

    Terms are weighed by inverse document frequency, scaled to unit length and projected (TF-IDF, latent semantic
    analysis), so that no table of terms is needed outside the network's weights.
    """

    pooled_mean: Tensor
    pooled_scale: Tensor
    feature_mean: Tensor
    feature_scale: Tensor
    component_mean: Tensor
    component_scale: Tensor
    term_idf: Tensor
    term_components: Tensor

    def __init__(self, pooled_size: int, shape: NetworkShape) -> None:
        super().__init__()
        self._num_features = shape.num_features
        sizes = {"pooled": pooled_size, "feature": shape.num_features, "component": shape.num_components}
        for name, size in sizes.items():
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
        self.register_buffer("term_idf", torch.ones(shape.num_terms))
        self.register_buffer("term_components", torch.zeros(shape.num_terms, shape.num_components))

    def forward(self, pooled: Tensor, features: Tensor) -> Tensor:
        """Return [B, D] from pooled states [B, 2 W] and features with term weights behind them [B, F + V]."""
        return self.joined(pooled, features[:, : self._num_features], self.project(features[:, self._num_features :]))

    def project(self, weights: Tensor) -> Tensor:
        """Return the components [B, C] of term weights [B, V], before their scaling."""
        terms = weights * self.term_idf
        terms = terms / terms.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
        return terms @ self.term_components

    def joined(self, pooled: Tensor, features: Tensor, components: Tensor) -> Tensor:
        """Return [B, D] from pooled states [B, 2 W], features [B, F] and components [B, C]."""
        text = (features - self.feature_mean) * self.feature_scale
        components = (components - self.component_mean) * self.component_scale
        text = text.clamp(-MAX_SCALED_FEATURE, MAX_SCALED_FEATURE)
        return torch.cat([(pooled - self.pooled_mean) * self.pooled_scale, text, components], dim=1)


class ProjectedScaling(nn.Module):
    """The scaling of a network for features whose terms were projected before: [B, F + C] in place of [B, F + V]."""

    def __init__(self, scaling: InputScaling, num_features: int) -> None:
        super().__init__()
        self.scaling, self._num_features = scaling, num_features

    def forward(self, pooled: Tensor, features: Tensor) -> Tensor:
        """Return [B, D] from pooled states [B, 2 W] and features with components behind them [B, F + C]."""
        return self.scaling.joined(pooled, features[:, : self._num_features], features[:, self._num_features :])


class HazardNetwork(nn.Module):
    """Prompts to hazard logits on the length bins, for each served model."""

    def __init__(self, encoder: Any, bins: LengthBins, shape: NetworkShape, dropout: float = 0.0) -> None:
        super().__init__()
        if hasattr(encoder, "pooler"):
            encoder.pooler = None  # mean pooling takes its place
        self.encoder = encoder
        self.shape = shape
        pooled_size = 2 * encoder.config.hidden_size
        self.scaling = InputScaling(pooled_size, shape)
        size = pooled_size + shape.num_features + shape.num_components
        self.heads = nn.ModuleList(
            JointHead(kind, size, shape.num_models, bins, shape.hidden_size, dropout, reads_target=shape.reads_target)  # type: ignore[arg-type]
            for kind in shape.heads
        )

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the means over tokens of the last and the middle layer's states, [B, 2 W]."""
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        states = found.hidden_states
        mask = attention_mask.unsqueeze(-1).float()
        num_tokens = mask.sum(dim=1).clamp(min=1.0)
        layers = (states[-1], states[len(states) // 2])
        return torch.cat([(layer.float() * mask).sum(dim=1) / num_tokens for layer in layers], dim=1)

    def head_logits(self, pooled: Tensor, features: Tensor) -> Tensor:
        """Return the hazard logits [H, B, M, K] of each head from pooled states and features; in float32."""
        return stacked_logits(self.scaling, self.heads, pooled, features, reads_target=self.shape.reads_target)

    def logits_by_head(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the hazard logits [H, B, M, K] of each head for a batch of `INPUT_NAMES`."""
        input_ids, attention_mask, features = (batch[name] for name in INPUT_NAMES)
        return self.head_logits(self.pooled(input_ids, attention_mask), features)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, features: Tensor) -> Tensor:
        """Return hazard logits [B, M, K] of int64 `input_ids`, `attention_mask` [B, T] and `features` [B, F + V]."""
        return mean_of_heads(self.head_logits(self.pooled(input_ids, attention_mask), features))

    def unfreeze_last(self, num_layers: int | None) -> None:
        """Let only the last `num_layers` layers of the encoder train, all where it is None; embeddings never do."""
        layers = encoder_layers(self.encoder)
        self.encoder.requires_grad_(False)
        num_layers = len(layers) if num_layers is None else min(num_layers, len(layers))
        for layer in layers[len(layers) - num_layers :]:
            layer.requires_grad_(True)

    def round_to_half(self) -> None:
        """Round the weights to what float16 holds, so that calibration sees the weights that will be saved."""
        with torch.no_grad():
            for value in self.state_dict().values():
                if value.is_floating_point():
                    value.copy_(value.half().float())


class FrozenNetwork(nn.Module):
    """The scaling and heads of a network, which it shares, for pooled states of its encoder that were computed once.

    With `is_projected` the features of a batch end in components in place of term weights.
    """

    def __init__(self, network: HazardNetwork, *, is_projected: bool = False) -> None:
        super().__init__()
        self.heads = network.heads
        self.scaling: nn.Module = network.scaling
        if is_projected:
            self.scaling = ProjectedScaling(network.scaling, network.shape.num_features)
        self._reads_target = network.shape.reads_target

    def each_head(self) -> Iterator[JointHead]:
        """Yield the heads."""
        for head in self.heads:
            assert isinstance(head, JointHead)
            yield head

    def logits_by_head(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the hazard logits [H, B, M, K] of each head for a batch with `pooled` and `features`."""
        pooled, features = batch["pooled"], batch["features"]
        return stacked_logits(self.scaling, self.heads, pooled, features, reads_target=self._reads_target)


def stacked_logits(
    scaling: nn.Module, heads: nn.ModuleList, pooled: Tensor, features: Tensor, *, reads_target: bool
) -> Tensor:
    """Return the hazard logits [H, B, M, K] of each head from pooled states and features; in float32."""
    with torch.autocast(pooled.device.type, enabled=False):
        inputs = scaling(pooled.float(), features.float())
        asked = features[:, [HAS_TARGET, LOG_TARGET]].float() if reads_target else None
        return torch.stack([head(inputs, asked) for head in heads])


def encoder_layers(encoder: nn.Module) -> nn.ModuleList:
    """Return the layers of an encoder, first to last: its longest list of modules; empty where it has none."""
    stacks = (module for module in encoder.modules() if isinstance(module, nn.ModuleList))
    return max(stacks, key=len, default=nn.ModuleList())


class TorchLengthPredictor(LengthPredictorLike):
    """A length predictor that runs its network in torch, as training leaves it."""

    def __init__(self, network: HazardNetwork, tokenizer: Tokenizer, spec: PredictorSpec, batch_size: int = 32) -> None:
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.spec = spec
        self._batch_size = batch_size
        self._terms = np.asarray(spec.terms, dtype=np.int64)

    def survivals(self, prompts: Sequence[str], contexts: Contexts = None) -> FloatArray:
        """Return the predicted survival [N, M, K+1] of N requests for every served model."""
        spec = self.spec
        inputs = encode_prompts(
            self.tokenizer, prompts, spec.max_prompt_tokens, self._terms, contexts, spec.num_features
        )
        return network_survivals(self.network, inputs, spec.pad_token_id, spec.bins.num_bins, self._batch_size)


def network_survivals(
    network: HazardNetwork, inputs: PromptInputs, pad_token_id: int, num_bins: int, batch_size: int = 32
) -> FloatArray:
    """Return the survival [N, M, K+1] of N prompts, on the device of the network; puts it in evaluation mode."""
    network.eval()
    device = next(network.parameters()).device
    logits = np.zeros((len(inputs), network.shape.num_models, num_bins), dtype=np.float32)
    with torch.inference_mode():
        for indices in batches_by_length(inputs.token_ids, batch_size):
            batch = (torch.as_tensor(array, device=device) for array in inputs.batch(indices, pad_token_id))
            logits[indices] = network(*batch).float().cpu().numpy()
    return survival_from_hazard_logits(logits)
