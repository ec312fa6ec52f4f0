"""The settings of a training run: one dataclass; its strings are the help of `amin train`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from predictor.errors import InputError
from predictor.ranges import LARGEST, Count, CountOrNone, Probability, Range, Seed, Share, check_ranges

HEADS = ("hazard", "mixture")
AlmostShare = Annotated[float, Range(0, 0.9999)]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of `amin train`; lengths in tokens."""

    data: str = ""
    """Records, logs or conversations: a file, a folder or a pattern, in the formats of docs/data-formats.md; or a hub
    data set of conversations (lmsys/lmsys-chat-1m)."""
    model: str | None = None
    """Served model whose rows are used; without it one network learns all the served models in the data."""
    default_model: str | None = None
    """Served model that predictions are for where none is named. Default: the only one, or average of several."""
    encoder: str | None = None
    """Text encoder: a folder (a run or predictor too) or a hub name. Default: checkpoints/length-predictor of the
    project."""
    init: str | None = None
    """Predictor to start from (a folder that amin train wrote), heads included; unknown served models start as the
    average of those it knows, weighed by what the names tell: family, size, thinking."""
    tokenizer: str | None = None
    """Tokenizer of the served model (folder, file or hub name); counts the answers of conversation data."""
    length_cap: Count | None = None
    """Answers of at least so many tokens count as truncated there."""
    split_by: Literal["cluster", "time"] = "cluster"
    """How data is split: by near-duplicate cluster, unless it has splits of its own; or by time, which trains on the
    days before, tests on the days after, and reports each of them."""
    tau: Probability = 0.1
    """Probability allowed below the bound, for the reported measures; a saved predictor answers any tau."""
    seed: Seed = 0
    """Seed of splits, subsampling, batches and dropout."""
    epochs: CountOrNone = 0
    """Passes over the training prompts that train the whole network once the heads are trained, at most (stops early by
    pinball loss in validation). 0 keeps the encoder as it is; 5 pays for an encoder that never saw lengths."""
    head_epochs: CountOrNone = 8
    """Passes that train the heads alone, on states computed once."""
    batch_size: Count = 32
    """Prompts in a batch, on each device."""
    max_prompts: Count | None = None
    """Training prompts kept, drawn at random; for quick runs."""
    max_prompt_tokens: Annotated[int, Range(4, LARGEST)] = 64
    """Tokens of a prompt that the encoder reads: its first half and its last."""
    num_layers: Count | None = None
    """Encoder layers kept, evenly chosen, the first and the last among them; all of them by default."""
    teacher: str | None = None
    """Predictor whose predictions are learnt along with the draws (a run, its predictor or an export), or several with
    commas between, whose mean is learnt: distillation."""
    teacher_share: Share = 0.5
    """Weight of the teacher's predictions; the draws have the rest."""
    unfrozen_layers: CountOrNone | None = None
    """Encoder layers that train, counted from the last; all of them by default, 0 for the heads alone."""
    num_terms: CountOrNone = 4096
    """Tokens and pairs of tokens whose weights the network reads over the whole prompt."""
    num_components: Count = 128
    """Dimensions to which these weights are projected."""
    heads: str = "hazard,mixture"
    """Heads whose survival is averaged: hazard, mixture, or both with a comma between."""
    num_bins: Count = 64
    """Length bins, log-spaced."""
    max_length: Count | None = None
    """Last edge of the length bins, in tokens; longer draws count as longer than that. Default: the data's, a power of
    two up to 32768 that all but one in a thousand of the training lengths stay below."""
    hidden_size: Count = 256
    """Width of the heads."""
    dropout: AlmostShare = 0.5
    """Dropout on the inputs and the hidden layer of the heads; the encoder has none."""
    encoder_lr: Share = 1e-4
    """Peak learning rate of the encoder."""
    head_lr: Share = 1e-3
    """Peak learning rate of the heads; four times as much while they train alone."""
    weight_decay: Share = 0.05
    """Weight decay (AdamW)."""
    warmup: Share = 0.1
    """Share of the steps in which learning rates rise, while they fall to zero as a cosine."""
    average_decay: AlmostShare = 0.995
    """Decay of the moving average of the weights, a step; what is validated and kept."""
    patience: CountOrNone = 2
    """Epochs without a better pinball loss in validation before training stops."""
    bf16: bool = False
    """Train in bfloat16 where that is safe."""
    half: bool = False
    """Save the weights in float16: half the size."""
    accelerator: str = "auto"
    """Lightning accelerator: auto, cpu, gpu."""
    devices: Count = 1
    """Devices to train on; more than one takes Lightning's strategy."""
    strategy: str = "auto"
    """Lightning strategy: auto, ddp, fsdp."""
    baselines: bool = True
    """Fit the baselines and report them next to the predictor."""
    progress: bool = True
    """Show progress bars."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)
        if unknown := [name for name in self.heads.split(",") if name not in HEADS]:
            raise InputError(f"--heads: {unknown[0]!r} is not one of {', '.join(HEADS)}")
