"""Heads of the network: from features of a prompt to hazard logits for all served models together."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import FloatArray

Kind = Literal["hazard", "mixture"]

NUM_LOGISTICS = 4
MODEL_SIZE = 32
# Bumps of the hazard around a length asked for: their places and width, in log tokens from it.
OBEYED_PLACES, OBEYED_WIDTH = (-2.0, -1.2, -0.6, 0.0, 0.6, 1.2, 2.0), 0.5
# A hazard is a ratio of survivals; without these a lost last digit of float32 would become a logit of any size.
LEAST_HAZARD = 1e-6
LEAST_LOG_SURVIVAL = -30.0


class JointHead(nn.Module):
    """Features [B, D] to hazard logits [B, M, K]: one hidden layer, modulated by each served model's embedding.

    The output layer is shared, plus a residual of weights and bias for each served model. Kind `hazard` gives the
    logits as they are; `mixture` gives the weights, places and scales of four logistic distributions of log length,
    smooth where a bin has few draws, and from them the logits. With `reads_target`, a length that the request asks for
    moves the answer's distribution towards it, by as much as each served model keeps to it: hazard logits gain bumps
    around it, logistic places are drawn to it.
    """

    log_edges: Tensor
    obeyed_places: Tensor

    def __init__(
        self,
        kind: Kind,
        input_size: int,
        num_models: int,
        bins: LengthBins,
        hidden_size: int,
        dropout: float,
        *,
        reads_target: bool = False,
    ):
        super().__init__()
        self.kind = kind
        num_outputs = bins.num_bins if kind == "hazard" else 3 * NUM_LOGISTICS
        self.input_dropout = nn.Dropout(dropout)
        self.input = nn.Linear(input_size, hidden_size)
        self.embedding = nn.Parameter(0.3 * torch.randn(num_models, MODEL_SIZE))
        self.shift = nn.Linear(MODEL_SIZE, hidden_size, bias=False)
        self.gain = nn.Linear(MODEL_SIZE, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, num_outputs)
        self.residual = nn.Parameter(torch.zeros(num_models, hidden_size, num_outputs))
        self.bias = nn.Parameter(torch.zeros(num_models, num_outputs))
        self.obeying: nn.Linear | None = None
        if reads_target:
            self.obeying = nn.Linear(hidden_size, len(OBEYED_PLACES) if kind == "hazard" else 2)
            nn.init.zeros_(self.obeying.weight)
            nn.init.zeros_(self.obeying.bias)
        self.register_buffer("obeyed_places", torch.tensor(OBEYED_PLACES), persistent=False)
        edges = torch.tensor(bins.as_array()[1:], dtype=torch.float32)
        self.register_buffer("log_edges", torch.log(edges + 0.5), persistent=False)
        nn.init.zeros_(self.gain.weight)
        nn.init.ones_(self.gain.bias)

    def forward(self, features: Tensor, asked: Tensor | None = None) -> Tensor:
        """Return hazard logits [B, M, K] of features [B, D].

        `asked` [B, 2] says whether a length is asked for, 1 or 0, and log(1 + its tokens).
        """
        hidden = self.input(self.input_dropout(features)).unsqueeze(1)
        hidden = hidden * self.gain(self.embedding) + self.shift(self.embedding)
        hidden = self.dropout(nn.functional.gelu(hidden))
        outputs: Tensor = self.output(hidden) + self.bias
        outputs = outputs + torch.matmul(hidden.transpose(0, 1), self.residual).transpose(0, 1)
        if self.obeying is not None:
            assert asked is not None
            outputs = self._obey(outputs, self.obeying(hidden), asked)
        return outputs if self.kind == "hazard" else logits_from_log_survival(self._log_survival(outputs))

    def _obey(self, outputs: Tensor, response: Tensor, asked: Tensor) -> Tensor:
        """Return outputs [B, M, O] moved towards the length asked for, as far as `response` [B, M, R] says."""
        is_asked, target = asked[:, None, :1], asked[:, None, 1:]
        if self.kind == "hazard":
            # Beyond the outermost bumps their effect stays, so that a target holds for lengths far from it.
            away = (self.log_edges - target[:, 0]).clamp(OBEYED_PLACES[0], OBEYED_PLACES[-1])
            bumps = torch.exp(-0.5 * ((away.unsqueeze(1) - self.obeyed_places[:, None]) / OBEYED_WIDTH).square())
            return outputs + is_asked * torch.matmul(response, bumps)
        weights, places, log_scales = outputs.chunk(3, dim=-1)
        gate, offset = torch.sigmoid(response[..., :1] - 2.0), response[..., 1:]
        places = places + is_asked * gate * (target + offset - places)
        return torch.cat([weights, places, log_scales], dim=-1)

    def start_at(self, hazard_logits: FloatArray) -> None:
        """Make the head predict for every prompt the hazard logits [M, K]; a mixture starts broad instead."""
        with torch.no_grad():
            if self.kind == "hazard":
                self.output.weight.zero_()
                self.output.bias.zero_()
                self.bias.copy_(torch.as_tensor(hazard_logits, dtype=torch.float32))
                return
            nn.init.normal_(self.output.weight, std=0.02)
            last = float(self.log_edges[-1])
            places = torch.linspace(0.48 * last, 0.82 * last, NUM_LOGISTICS)
            self.output.bias.copy_(torch.cat([torch.zeros(NUM_LOGISTICS), places, torch.full((NUM_LOGISTICS,), -1.0)]))

    def _log_survival(self, outputs: Tensor) -> Tensor:
        weights, places, log_scales = outputs.chunk(3, dim=-1)
        scaled = (self.log_edges - places.unsqueeze(-1)) * torch.exp(-log_scales.clamp(-4.0, 2.0)).unsqueeze(-1)
        # Not logsigmoid: its ONNX form is log(sigmoid), which is -inf far out, and from there on not a number.
        parts = torch.log_softmax(weights, dim=-1).unsqueeze(-1) - softplus(scaled)
        return torch.logsumexp(parts, dim=-2)


def log_survival_from_logits(logits: Tensor) -> Tensor:
    """Return log P(length > e_k) at the edges 1..K from hazard logits, both [..., K]."""
    return -softplus(logits).cumsum(dim=-1)


def logits_from_log_survival(log_survival: Tensor) -> Tensor:
    """Return hazard logits from log P(length > e_k) at the edges 1..K, both [..., K]."""
    start = torch.zeros_like(log_survival[..., :1])
    log_alive = torch.cat([start, log_survival[..., :-1]], dim=-1)
    step = (log_survival - log_alive).clamp(LEAST_LOG_SURVIVAL, -LEAST_HAZARD)
    return torch.log(-torch.expm1(step)) - step


def mean_of_heads(logits: Tensor) -> Tensor:
    """Return the hazard logits [B, M, K] of the mean survival of H heads with logits [H, B, M, K]."""
    if len(logits) == 1:
        return logits[0]
    log_survival = log_survival_from_logits(logits)
    mean = torch.logsumexp(log_survival, dim=0) - torch.log(torch.tensor(float(len(logits))))
    return logits_from_log_survival(mean)
