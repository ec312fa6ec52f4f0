"""Training with Lightning: the module, the trainer and its callbacks, and resuming."""

import math
import os
import signal
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from predictor.bounds.bins import LengthBins
from predictor.errors import InputError
from predictor.prompts.tokens import INPUT_NAMES
from predictor.training.config import TrainConfig
from predictor.training.data import TARGET_NAMES, Batch, LengthDataModule
from predictor.training.losses import censored_hazard_nll, mean_pinball_loss
from predictor.training.network import HazardNetwork
from predictor.training.objectives import objective

# Known and harmless here; matched by message so that anything new still shows.
HARMLESS_WARNINGS = (
    ".*does not have many workers.*",  # batches are a few small arrays
    ".*is smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",  # raised inside Lightning with torch 2.13
    ".*GPU available but not used.*",
)


PATHS_OF_STATE = ("best_model_path", "kth_best_model_path", "last_model_path")


class WeightAverage(WeightAveraging):
    """Exponential moving average of the weights, validated and saved in their place; a young one forgets faster."""

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
            keep = min(decay, (int(num_averaged) + 1) / (int(num_averaged) + 10))
            return current + keep * (averaged - current)

        super().__init__(use_buffers=False, avg_fn=average)


class BestEpoch(ModelCheckpoint):
    """Keeps the best epoch; a run whose folder has moved since goes on from the best epoch there."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read the state, with its paths in the folder that the checkpoints are in now."""

        def moved(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = {name: moved(state_dict[name]) for name in PATHS_OF_STATE}
        kept = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": kept})


class LengthModule(lightning.LightningModule):
    """The hazard network with its loss and optimiser; dropout is seeded by (seed, step)."""

    def __init__(self, network: HazardNetwork, bins: LengthBins, config: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self.bins = bins
        self.config = config
        self.objective = objective(config.objective, bins)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout from the step, so that a resumed run repeats the uninterrupted one."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.global_step * 1_009 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the objective on a batch; with several heads the mean of theirs."""
        loss = sum(self._losses(batch)) / len(self.network.heads)
        assert isinstance(loss, Tensor)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch["input_ids"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss, in nats a draw, and the pinball loss at the run's tau, in tokens, which chooses the epoch."""
        logits, answered = self.network(*network_inputs(batch)).float(), batch["weights"] > 0
        loss = censored_hazard_nll(logits, *targets(batch))
        lengths = batch["output_lens"][answered].cpu().numpy()
        pinball = mean_pinball_loss(self.bins, logits[answered].cpu().numpy(), lengths, self.config.tau)
        size = int(answered.sum())
        self.log("validation_loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("validation_pinball", torch.tensor(pinball), prog_bar=True, batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return AdamW with two learning rates, each rising over the warm-up and then falling to zero as a cosine."""
        config, total = self.config, int(self.trainer.estimated_stepping_batches)
        encoder = [p for p in self.network.encoder.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": list(self.network.heads.parameters()), "lr": config.head_lr}]
        if encoder:
            groups.append({"params": encoder, "lr": config.encoder_lr})
        optimizer = AdamW(groups, weight_decay=config.weight_decay)
        num_warmup = max(1, round(config.warmup * total))

        def factor(step: int) -> float:
            return min((step + 1) / num_warmup, 1.0) * (0.5 + 0.5 * math.cos(math.pi * min(step / total, 1.0)))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def _losses(self, batch: Batch) -> list[Tensor]:
        input_ids, attention_mask, features = network_inputs(batch)
        logits = self.network.head_logits(self.network.pooled(input_ids, attention_mask), features)
        return [self.objective(head, *targets(batch)) for head in logits]


def network_inputs(batch: Batch) -> list[Tensor]:
    """Return the network's inputs from a batch."""
    return [batch[name] for name in INPUT_NAMES]


def targets(batch: Batch) -> list[Tensor]:
    """Return events, at risk and weights from a batch."""
    return [batch[name] for name in TARGET_NAMES]


def train_network(
    network: HazardNetwork,
    bins: LengthBins,
    data: LengthDataModule,
    config: TrainConfig,
    run: Path,
    start_loss: float,
    *,
    resume: bool = False,
) -> float:
    """Train `network` in place, leave it at its best epoch on the CPU, and return its pinball loss in validation.

    Where no epoch beats `start_loss`, that of the network as given, it stays as it was. Writes `run/checkpoints/`
    (best, last) and `run/logs/`. With `resume` it goes on from the last whole epoch, to the result that the
    uninterrupted run would have given.
    """
    checkpoints = run / "checkpoints"
    best = BestEpoch(checkpoints, "best", monitor="validation_pinball", save_last=True, enable_version_counter=False)
    stop = EarlyStopping("validation_pinball", patience=config.patience)
    last = checkpoints / "last.ckpt"
    start = {name: value.clone() for name, value in network.state_dict().items()}
    module = LengthModule(network.train(), bins, config)
    with warnings.catch_warnings():
        for message in HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        trainer = make_trainer(config, run, [WeightAverage(config.average_decay), best, stop])
        resumed = last if resume and last.is_file() else None
        if resumed is not None and not is_zipfile(resumed):  # torch writes zip files
            raise InputError(f"{resumed}: not whole; remove it to train again from the start")
        try:
            trainer.fit(module, data, ckpt_path=resumed, weights_only=False)
        except SIGTERMException:
            raise SystemExit(128 + signal.SIGTERM) from None  # Lightning's own has code 0, as if it were done
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
    assert best.best_model_score is not None
    loss = float(best.best_model_score)
    if loss < start_loss:
        state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
        start = {name.removeprefix("network."): value for name, value in state.items()}
    network.cpu().load_state_dict(start)
    network.requires_grad_(True)
    return min(loss, start_loss)


def check_devices(config: TrainConfig) -> None:
    """Raise InputError where there is no such accelerator, strategy or number of devices on this machine."""
    asked = f"accelerator {config.accelerator}, devices {config.devices}, strategy {config.strategy}"
    try:
        with warnings.catch_warnings(action="ignore"):
            trainer = lightning.Trainer(
                accelerator=config.accelerator,
                devices=config.devices,
                strategy=config.strategy,
                precision="bf16-mixed" if config.bf16 else "32-true",
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
            )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise InputError(f"{asked}: {' '.join(str(error).split())[:200]}") from None
    if isinstance(trainer.accelerator, CPUAccelerator) and config.devices > max(2, os.cpu_count() or 1):
        raise InputError(f"{asked}: that many processes on {os.cpu_count()} CPU cores; lower --devices")


def make_trainer(config: TrainConfig, run: Path, callbacks: list[Callback]) -> lightning.Trainer:
    """Return the trainer of a run, which logs to `run/logs/`."""
    return lightning.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=config.strategy,
        precision="bf16-mixed" if config.bf16 else "32-true",
        max_epochs=config.epochs,
        gradient_clip_val=1.0,
        callbacks=callbacks,
        logger=loggers(run),
        log_every_n_steps=5,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=config.progress,
    )


def loggers(run: Path) -> list[Logger]:
    """Return the loggers of a run: CSV, and TensorBoard where it is installed."""
    found: list[Logger] = [CSVLogger(run, name="logs")]
    if find_spec("tensorboard") is not None:
        found.append(TensorBoardLogger(run, name="logs", version=found[0].version))
    return found
