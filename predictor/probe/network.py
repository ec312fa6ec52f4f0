"""The probe's network: one hidden layer from a state to the hazard of the remaining length."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ProbeShape:
    """Sizes of the network.

    Attributes:
        hidden_size: H, width of a state.
        num_bins: K, bins of the remaining length.
        width: Of the hidden layer.
    """

    hidden_size: int
    num_bins: int
    width: int = 128


class ProbeNetwork(nn.Module):
    """Hazard logits [N, K] of the remaining length after t tokens; one network for all t.

    Inputs are the state at t, the mean of the last few, the mean of the prompt's (each normalised by itself, since
    their scales differ by layer), log(1 + t) and log(1 + prompt tokens).
    """

    def __init__(self, shape: ProbeShape, dropout: float = 0.3) -> None:
        """Make the layers; the last starts at zero, so that training starts from its bias, the marginal hazard."""
        super().__init__()
        self.shape = shape
        self.norms = nn.ModuleList(nn.LayerNorm(shape.hidden_size) for _ in range(3))
        num_inputs = 3 * shape.hidden_size + 2
        self.hidden = nn.Linear(num_inputs, shape.width)
        self.dropout = nn.Dropout(dropout)
        self.hazard = nn.Linear(shape.width, shape.num_bins)
        nn.init.zeros_(self.hazard.weight)

    def forward(self, states: Tensor, counts: Tensor) -> Tensor:
        """Return the logits.

        Args:
            states: [N, 3, H]: last, recent mean, prompt mean.
            counts: [N, 2]: tokens generated, prompt tokens.
        """
        normalised = [norm(states[:, place]) for place, norm in enumerate(self.norms)]
        inputs = torch.cat([*normalised, torch.log1p(counts) / 8.0], dim=-1)  # of order one, as the states are
        hidden = nn.functional.gelu(self.hidden(self.dropout(inputs)))
        logits: Tensor = self.hazard(self.dropout(hidden))
        return logits
