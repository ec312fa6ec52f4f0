"""What `amin reduce` is asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from predictor.ranges import Count, Seed, check_ranges
from predictor.records.chat_turns import ChatOptions


@dataclass(frozen=True, slots=True)
class ReduceSettings:
    """Settings of `amin reduce`; lengths in tokens.

    Examples:
      amin reduce --data logs.jsonl --out reduced
      amin train --data reduced --out run
    """

    data: str
    """Records, logs or conversations, as amin train reads them."""
    out: Path
    """Folder for what is left: lengths, states, features and splits, no text."""
    encoder: str | None = None
    """Predictor whose encoder and terms read the prompts; amin train needs the same. Default:
    checkpoints/length-predictor of the project."""
    model: str | None = None
    """Served model whose rows are used; default: all."""
    tokenizer: str | None = None
    """Tokenizer of the served model (folder, file or hub name); counts the answers of conversation data."""
    length_cap: Count | None = None
    """Answers of at least so many tokens count as truncated there."""
    split_by: Literal["cluster", "time"] = "cluster"
    """How data without splits of its own is split; they are made here, since that takes the text."""
    seed: Seed = 0
    """Seed of the splits."""
    force: bool = False
    """Replace the folder that is there."""
    progress: bool = True
    """Show progress bars."""
    conversations: ChatOptions = field(default_factory=ChatOptions)
    """Conversation data."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)
