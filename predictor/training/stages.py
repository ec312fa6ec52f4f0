"""The two stages of training, each a run of the one loop: heads on states computed once, then the whole network."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from predictor.training.config import TrainConfig
from predictor.training.network import FrozenNetwork, HazardNetwork

# While the heads train alone: prompts in a batch, decay of their average, most steps of warm-up, and the share of the
# peak learning rate of all stages by kind of head.
HEADS_BATCH_SIZE = 64
HEADS_AVERAGE_DECAY = 0.99
MAX_HEADS_WARMUP = 100
LEARNING_RATE_FACTORS = {"hazard": 4.0, "mixture": 2.0}

ParameterGroups = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Stage:
    """What tells one stage from the other; `folder` is that of its checkpoints under `checkpoints/` of the run."""

    name: str
    folder: str
    epochs: int
    groups: ParameterGroups = field(repr=False)
    num_warmup: Callable[[int], int]
    """Steps of warm-up, given all steps."""
    average_decay: float
    monitor: str
    """What chooses the epoch that is kept: of the heads the loss, which many served models make steady; of the whole
    network the pinball loss."""
    patience: int | None = None


def heads_stage(network: FrozenNetwork, config: TrainConfig) -> Stage:
    """Return the stage that trains the heads alone."""
    groups: ParameterGroups = [
        {"params": list(head.parameters()), "lr": config.head_lr * LEARNING_RATE_FACTORS[head.kind]}
        for head in network.each_head()
    ]

    def num_warmup(total: int) -> int:
        return max(1, min(MAX_HEADS_WARMUP, total // 4))

    return Stage("heads alone", "heads", config.head_epochs, groups, num_warmup, HEADS_AVERAGE_DECAY, "validation_loss")


def network_stage(network: HazardNetwork, config: TrainConfig) -> Stage:
    """Return the stage that trains heads and encoder together."""
    encoder = trainable(network.encoder)
    groups: ParameterGroups = [{"params": trainable(network.heads), "lr": config.head_lr}]
    if encoder:
        groups.append({"params": encoder, "lr": config.encoder_lr})

    def num_warmup(total: int) -> int:
        return max(1, round(config.warmup * total))

    return Stage(
        "whole network", "", config.epochs, groups, num_warmup, config.average_decay, "validation_pinball",
        config.patience,
    )  # fmt: skip


def trainable(module: nn.Module) -> list[Tensor]:
    """Return the parameters of a module that train."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
