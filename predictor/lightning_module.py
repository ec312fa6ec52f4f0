"""Training with Lightning: the module, the trainer and its callbacks, and resuming."""

import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from predictor.config import TrainConfig
from predictor.data import Batch, LengthDataModule
from predictor.losses import censored_hazard_nll
from predictor.network import HazardNetwork

# Known and harmless here; matched by message so that anything new still shows.
HARMLESS_WARNINGS = (
    ".*does not have many workers.*",  # batches are a few small arrays
    ".*is smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",  # raised inside Lightning with torch 2.13
    ".*GPU available but not used.*",
)


class LengthModule(lightning.LightningModule):
    """The hazard network with its loss and optimiser; dropout is seeded by (seed, step)."""

    def __init__(self, network: HazardNetwork, config: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout from the step, so that a resumed run repeats the uninterrupted one."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.global_step * 1_009 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, in nats a draw."""
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch["input_ids"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the validation loss, in nats a draw."""
        size = len(batch["input_ids"])
        self.log("validation_loss", self._loss(batch), prog_bar=True, batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return AdamW with two learning rates, each rising over the warm-up and then falling linearly to zero."""
        config, total = self.config, int(self.trainer.estimated_stepping_batches)
        encoder = [p for p in self.network.encoder.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": list(self.network.head.parameters()), "lr": config.head_lr}]
        if encoder:
            groups.append({"params": encoder, "lr": config.encoder_lr})
        optimizer = AdamW(groups, weight_decay=config.weight_decay)
        num_warmup = max(1, round(config.warmup * total))

        def factor(step: int) -> float:
            return min((step + 1) / num_warmup, max(0.0, (total - step) / max(1, total - num_warmup)))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def _loss(self, batch: Batch) -> Tensor:
        logits = self.network(batch["input_ids"], batch["attention_mask"])
        return censored_hazard_nll(logits.float(), batch["events"], batch["at_risk"])


def train_network(
    network: HazardNetwork, data: LengthDataModule, config: TrainConfig, run: Path, *, resume: bool = False
) -> float:
    """Train `network` in place, leave it at its best epoch on the CPU, and return the best validation loss (nats).

    Writes `run/checkpoints/` (best, last) and `run/logs/`. With `resume` it goes on from the last whole epoch, to the
    result that the uninterrupted run would have given.
    """
    checkpoints = run / "checkpoints"
    best = ModelCheckpoint(checkpoints, "best", monitor="validation_loss", save_last=True, enable_version_counter=False)
    stop = EarlyStopping("validation_loss", patience=config.patience)
    last = checkpoints / "last.ckpt"
    module = LengthModule(network.train(), config)
    with warnings.catch_warnings():
        for message in HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        trainer = make_trainer(config, run, [best, stop])
        trainer.fit(module, data, ckpt_path=str(last) if resume and last.is_file() else None, weights_only=False)
    state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
    network.cpu().load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    network.requires_grad_(True)
    assert best.best_model_score is not None
    return float(best.best_model_score)


def make_trainer(config: TrainConfig, run: Path, callbacks: list[Callback]) -> lightning.Trainer:
    """Return the trainer of a run, which logs to `run/logs/`."""
    return lightning.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=config.strategy,
        precision="bf16-mixed" if config.bf16 else "32-true",
        max_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        gradient_clip_val=1.0,
        callbacks=callbacks,
        logger=CSVLogger(run, name="logs"),
        log_every_n_steps=5,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=config.progress,
    )
