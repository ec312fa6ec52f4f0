"""The network: a text encoder, mean pooling and a hazard head; and the predictor that runs it in torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from predictor.bins import LengthBins
from predictor.distribution import FloatArray, survival_from_hazard_logits
from predictor.prompt_tokens import batches_by_length, encode_prompts, pad
from predictor.spec import MaxNewTokens, Predictions, PredictorSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class HazardNetwork(nn.Module):
    """Prompts as token ids to hazard logits on the length bins."""

    def __init__(self, encoder: Any, num_bins: int, hidden_size: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        if hasattr(encoder, "pooler"):
            encoder.pooler = None  # mean pooling takes its place
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.head = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden_size),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, num_bins),
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return hazard logits [B, K] of `input_ids` and `attention_mask`, both int64 [B, T]."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
        logits: Tensor = self.head(pooled)
        return logits

    def start_at(self, hazard_logits: FloatArray) -> None:
        """Make the network predict the hazard logits [K] for every prompt, so that training starts at the marginal."""
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.as_tensor(hazard_logits, dtype=last.bias.dtype))

    def unfreeze_last(self, num_layers: int) -> None:
        """Let only the last `num_layers` layers of the encoder train; with 0, none of it."""
        stacks = [list(module) for module in self.encoder.modules() if isinstance(module, nn.ModuleList)]
        layers: list[nn.Module] = max(stacks, key=len, default=[])
        self.encoder.requires_grad_(False)
        for layer in layers[len(layers) - min(num_layers, len(layers)) :]:
            layer.requires_grad_(True)

    def round_to_half(self) -> None:
        """Round the weights to what float16 holds, so that calibration sees the weights that will be saved."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(parameter.half().float())


class TorchLengthPredictor:
    """A length predictor that runs its network in torch, as training leaves it."""

    def __init__(
        self, network: HazardNetwork, tokenizer: "Tokenizer", spec: PredictorSpec, batch_size: int = 32
    ) -> None:
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.spec = spec
        self._batch_size = batch_size

    @property
    def bins(self) -> LengthBins:
        """The length bins of the survival arrays."""
        return self.spec.bins

    def survival(self, prompts: Sequence[str]) -> FloatArray:
        """Return the predicted survival [N, K+1] of N prompts."""
        spec = self.spec
        return network_survival(
            self.network,
            encode_prompts(self.tokenizer, prompts, spec.max_prompt_tokens),
            spec.pad_token_id,
            spec.bins.num_bins,
            self._batch_size,
        )

    def predict(self, prompts: Sequence[str], tau: float = 0.1, max_new_tokens: MaxNewTokens = None) -> Predictions:
        """Return lower bounds reached with probability >= 1 - tau, medians and survival of N prompts, in tokens.

        Raises:
            InputError: `tau` is outside (0, 1) or finer than the calibration split supports.
        """
        return self.spec.predictions(self.survival(prompts), tau, max_new_tokens)


def network_survival(
    network: HazardNetwork, token_ids: Sequence[Sequence[int]], pad_token_id: int, num_bins: int, batch_size: int = 32
) -> FloatArray:
    """Return the survival [N, K+1] of N tokenised prompts, on the device of the network; puts it in evaluation mode."""
    network.eval()
    device = next(network.parameters()).device
    logits = np.zeros((len(token_ids), num_bins), dtype=np.float32)
    with torch.inference_mode():
        for indices in batches_by_length(token_ids, batch_size):
            batch = pad([token_ids[i] for i in indices], pad_token_id)
            input_ids, attention_mask = (torch.as_tensor(array, device=device) for array in batch)
            logits[indices] = network(input_ids, attention_mask).float().cpu().numpy()
    return survival_from_hazard_logits(logits)
