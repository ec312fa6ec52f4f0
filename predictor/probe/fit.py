"""Training of a probe: one small network on states of one layer, with Lightning; the layer chosen in validation."""

import copy
import signal
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from predictor.bounds.bins import IntArray, LengthBins
from predictor.bounds.distribution import BoolArray, FloatArray, cdf
from predictor.errors import InputError
from predictor.probe.calibration import Scores, StageCalibration
from predictor.probe.network import ProbeNetwork, ProbeShape
from predictor.probe.probe import Probe, ProbeInputs, remaining_survival
from predictor.probe.states import States, StateSource
from predictor.training.lightning_module import HARMLESS_WARNINGS
from predictor.training.losses import censored_hazard_nll, hazard_counts, marginal_hazard_logits, mean_pinball_loss


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """Settings of the training of a probe."""

    tau: float = 0.1
    """Probability allowed below the bound, for the loss that chooses epoch and layer."""
    num_bins: int = 40
    """Bins of the remaining length, log-spaced."""
    width: int = 128
    """Width of the hidden layer."""
    dropout: float = 0.3
    """Dropout on the inputs and the hidden layer."""
    lr: float = 1e-3
    """Learning rate (AdamW)."""
    weight_decay: float = 0.01
    """Weight decay."""
    batch_size: int = 256
    """States in a batch."""
    epochs: int = 40
    """Passes over the states, at most."""
    patience: int = 5
    """Epochs without a better pinball loss in validation before training stops."""
    seed: int = 0
    """Of initial weights, batches and dropout."""
    progress: bool = True
    """Show progress bars."""


@dataclass(frozen=True, slots=True)
class ProbeData:
    """States of one split with what became of their answers.

    Attributes:
        states: S rows.
        num_prompt_tokens: Of each row's prompt, [S].
        remaining: Tokens that came after the state, [S], at least 1.
        is_truncated: Whether the answer was cut, so that more would have come, [S].
    """

    states: States
    num_prompt_tokens: IntArray
    remaining: IntArray
    is_truncated: BoolArray

    def select(self, rows: IntArray) -> "ProbeData":
        """Return some of the rows."""
        return ProbeData(
            self.states.select(rows), self.num_prompt_tokens[rows], self.remaining[rows], self.is_truncated[rows]
        )

    @classmethod
    def concatenate(cls, parts: Sequence["ProbeData"]) -> "ProbeData":
        """Return the rows of all parts, one after the other."""
        states = States.concatenate([part.states for part in parts])
        names = ("num_prompt_tokens", "remaining", "is_truncated")
        return cls(states, *(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def inputs(self, layer: int) -> ProbeInputs:
        """Return the network's inputs for the `layer`-th of the layers that were kept."""
        states = self.states
        stacked = np.stack([states.last[:, layer], states.recent[:, layer], states.prompt_mean[:, layer]], axis=1)
        return ProbeInputs(stacked.astype(np.float32), states.generated, self.num_prompt_tokens)

    def scores(self, bins: LengthBins, survival: FloatArray) -> Scores:
        """Return what calibration needs of forecasts P(remaining > edge) [S, K+1]."""
        score = cdf(bins, survival, self.remaining + 1)
        states = self.states
        return Scores(states.prompt, states.draw, states.generated, score, self.remaining, self.is_truncated)


@dataclass(frozen=True, slots=True)
class FittedProbe:
    """A probe, the place of its layer among those that were kept, and every layer's pinball loss in validation."""

    probe: Probe
    place: int
    losses: Mapping[int, float]


def fit_probe(data: Mapping[str, ProbeData], source: StateSource, config: ProbeConfig) -> FittedProbe:
    """Return the probe of the layer with the least pinball loss in validation, calibrated.

    Args:
        data: Of the splits train, validation and calibration.
        source: What the states are of; a probe keeps the layer that it reads.
        config: The settings.

    Raises:
        InputError: A split has no state, or the calibration split is too small for tau.
    """
    for split in ("train", "validation", "calibration"):
        if not len(data[split].states):
            raise InputError(f"states: none of the {split} split; collect more prompts")
    bins = LengthBins.log_spaced(max(2, int(data["train"].remaining.max())), config.num_bins)
    fitted = [_fit_layer(place, data, bins, config) for place in range(len(source.layers))]
    best = min(range(len(fitted)), key=lambda place: fitted[place][1])
    network = fitted[best][0]
    held_out = data["calibration"]
    survival = remaining_survival(network, held_out.inputs(best))
    calibration = StageCalibration.fit(held_out.scores(bins, survival))
    calibration.level(config.tau, 0)
    probe = Probe(network, bins, replace(source, layers=(source.layers[best],)), calibration)
    return FittedProbe(probe, best, {source.layers[place]: loss for place, (_, loss) in enumerate(fitted)})


def _fit_layer(
    place: int, data: Mapping[str, ProbeData], bins: LengthBins, config: ProbeConfig
) -> tuple[ProbeNetwork, float]:
    """Return the network of one layer at its best epoch, and its pinball loss in validation."""
    torch.manual_seed(config.seed)
    train, validation = (_dataset(data[split], place, bins) for split in ("train", "validation"))
    shape = ProbeShape(data["train"].states.last.shape[-1], bins.num_bins, config.width)
    network = ProbeNetwork(shape, config.dropout)
    events, at_risk = (train.tensors[k].numpy() for k in (2, 3))
    network.hazard.bias.data = torch.from_numpy(marginal_hazard_logits(events, at_risk)).float()
    module = ProbeModule(network, bins, config)
    with warnings.catch_warnings():
        for message in HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=config.epochs,
            callbacks=[EarlyStopping("validation_pinball", patience=config.patience)],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=config.progress,
            num_sanity_val_steps=0,
        )
        generator = torch.Generator().manual_seed(config.seed)
        batches = DataLoader(train, config.batch_size, shuffle=True, generator=generator)
        try:
            trainer.fit(module, batches, DataLoader(validation, len(validation)))
        except SIGTERMException:
            raise SystemExit(128 + signal.SIGTERM) from None  # Lightning's own has code 0, as if it were done
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
    # What is calibrated is what is saved: in half precision.
    network.load_state_dict({name: value.half().float() for name, value in module.best_state.items()})
    return network.eval(), module.best_loss


class ProbeModule(lightning.LightningModule):
    """The probe's network with its loss; keeps the weights of the best epoch."""

    def __init__(self, network: ProbeNetwork, bins: LengthBins, config: ProbeConfig) -> None:
        super().__init__()
        self.network, self.bins, self.config = network, bins, config
        self.best_loss = float("inf")
        self.best_state = copy.deepcopy(network.state_dict())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the censored likelihood of the remaining lengths of a batch."""
        states, counts, events, at_risk, _ = batch
        return censored_hazard_nll(self.network(states, counts), events, at_risk)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the pinball loss at tau, in tokens; the one batch is the whole split."""
        states, counts, _, _, remaining = batch
        logits = self.network(states, counts).float().cpu().numpy()
        loss = mean_pinball_loss(self.bins, logits, remaining[:, None].cpu().numpy(), self.config.tau)
        self.log("validation_pinball", torch.tensor(loss), prog_bar=True)
        if loss < self.best_loss:
            self.best_loss, self.best_state = loss, copy.deepcopy(self.network.state_dict())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.network.parameters(), self.config.lr, weight_decay=self.config.weight_decay)


def _dataset(data: ProbeData, place: int, bins: LengthBins) -> TensorDataset:
    """Return states, counts, events, at risk and remaining lengths, a row a state."""
    inputs = data.inputs(place)
    counts = np.column_stack([inputs.generated, inputs.num_prompt_tokens]).astype(np.float32)
    rows = data.remaining[:, None], data.is_truncated[:, None]
    events, at_risk = hazard_counts(bins, list(rows[0]), list(rows[1]))
    arrays = (inputs.states, counts, events.astype(np.float32), at_risk.astype(np.float32), data.remaining)
    return TensorDataset(*map(torch.from_numpy, arrays))
