"""Training with Lightning: the module, the trainer and its callbacks, and resuming."""

import math
import os
import signal
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, EarlyStopping, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from predictor.bounds.bins import LengthBins
from predictor.errors import InputError
from predictor.training.checkpointing import BestEpoch, WholeCheckpoints, read_checkpoint
from predictor.training.config import TrainConfig
from predictor.training.data import TARGET_NAMES, Batch, LengthDataModule
from predictor.training.heads import mean_of_heads
from predictor.training.losses import Objective, censored_hazard_nll, mean_pinball_loss
from predictor.training.network import FrozenNetwork, HazardNetwork
from predictor.training.stages import Stage

# Known and harmless here; matched by message so that anything new still shows.
HARMLESS_WARNINGS = (
    ".*does not have many workers.*",  # batches are a few small arrays
    ".*is smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",  # raised inside Lightning with torch 2.13
    ".*GPU available but not used.*",
)


class WeightAverage(WeightAveraging):
    """Exponential moving average of the weights, validated and saved in their place; a young one forgets faster."""

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
            keep = min(decay, (int(num_averaged) + 1) / (int(num_averaged) + 10))
            return current + keep * (averaged - current)

        super().__init__(use_buffers=False, avg_fn=average)


class LengthModule(lightning.LightningModule):
    """A network with its loss and the optimiser of a stage; dropout is seeded by (seed, step)."""

    def __init__(
        self,
        network: HazardNetwork | FrozenNetwork,
        bins: LengthBins,
        config: TrainConfig,
        stage: Stage,
        objective: Objective = censored_hazard_nll,
    ) -> None:
        super().__init__()
        self.network, self.bins, self.config = network, bins, config
        self.stage, self.objective = stage, objective

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout from the step, so that a resumed run repeats the uninterrupted one."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.global_step * 1_009 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the objective on a batch; with several heads the mean of theirs."""
        logits = self.network.logits_by_head(batch)
        loss = torch.stack([self.objective(head, *targets(batch)) for head in logits]).mean()
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch["features"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss, in nats a draw, and the pinball loss at the run's tau, in tokens."""
        logits, answered = mean_of_heads(self.network.logits_by_head(batch)).float(), batch["weights"] > 0
        loss = censored_hazard_nll(logits, *targets(batch))
        lengths = batch["output_lens"][answered].cpu().numpy()
        pinball = mean_pinball_loss(self.bins, logits[answered].cpu().numpy(), lengths, self.config.tau)
        size = int(answered.sum())
        self.log("validation_loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("validation_pinball", torch.tensor(pinball), prog_bar=True, batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return AdamW with the stage's learning rates, each rising over the warm-up, then falling as a cosine."""
        total = int(self.trainer.estimated_stepping_batches)
        optimizer = AdamW(self.stage.groups, weight_decay=self.config.weight_decay)
        num_warmup = self.stage.num_warmup(total)

        def factor(step: int) -> float:
            return min((step + 1) / num_warmup, 1.0) * (0.5 + 0.5 * math.cos(math.pi * min(step / total, 1.0)))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def targets(batch: Batch) -> list[Tensor]:
    """Return events, at risk and weights from a batch."""
    return [batch[name] for name in TARGET_NAMES]


def train_stage(module: LengthModule, data: LengthDataModule, run: Path, *, resume: bool = False) -> dict[str, float]:
    """Train the module's network in place, leave it at its best epoch on the CPU, and return its validation measures.

    Where no epoch beats the network as given, by the measure that the stage names, it stays as it was. Writes
    `run/checkpoints/` (best, last) and `run/logs/`. With `resume` it goes on from the last whole epoch, to the result
    that the uninterrupted run would have given.
    """
    stage, checkpoints = module.stage, run / "checkpoints" / module.stage.folder
    best = BestEpoch(checkpoints, "best", monitor=stage.monitor, save_last=True, enable_version_counter=False)
    callbacks: list[Callback] = [WeightAverage(stage.average_decay), best]
    if stage.patience is not None:
        callbacks.append(EarlyStopping(stage.monitor, patience=stage.patience))
    last = checkpoints / "last.ckpt"
    resumed = last if resume and last.is_file() else None
    if resumed is not None:
        read_checkpoint(resumed)
    network = module.network
    start = {name: value.clone() for name, value in network.state_dict().items()}
    with warnings.catch_warnings():
        for message in HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        measured = validated(module, data, run)
        network.train()
        trainer = make_trainer(module.config, run, callbacks, stage.epochs)
        try:
            trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
        except SIGTERMException:
            raise SystemExit(128 + signal.SIGTERM) from None  # Lightning's own has code 0, as if it were done
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        assert best.best_model_score is not None
        if float(best.best_model_score) < measured[stage.monitor]:
            state = read_checkpoint(Path(best.best_model_path))["state_dict"]
            start = {name.removeprefix("network."): value for name, value in state.items()}
        network.cpu().load_state_dict(start)
        return validated(module, data, run)


def validated(module: LengthModule, data: LengthDataModule, run: Path) -> dict[str, float]:
    """Return the validation loss (nats a draw) and pinball loss (tokens) of the module's network as it is."""
    trainer = make_trainer(module.config, run, [], 1, is_silent=True)
    return dict(trainer.validate(module, data, verbose=False)[0])


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


def make_trainer(
    config: TrainConfig, run: Path, callbacks: list[Callback], epochs: int, *, is_silent: bool = False
) -> lightning.Trainer:
    """Return a trainer for so many `epochs`, which logs to `run/logs/` unless it is silent."""
    return lightning.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=config.strategy,
        precision="bf16-mixed" if config.bf16 else "32-true",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        callbacks=callbacks,
        logger=False if is_silent else loggers(run),
        plugins=[WholeCheckpoints()],
        enable_checkpointing=not is_silent,
        log_every_n_steps=5,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=config.progress and not is_silent,
    )


def loggers(run: Path) -> list[Logger]:
    """Return the loggers of a run: CSV, and TensorBoard where it is installed."""
    found: list[Logger] = [CSVLogger(run, name="logs")]
    if find_spec("tensorboard") is not None:
        found.append(TensorBoardLogger(run, name="logs", version=found[0].version))
    return found
