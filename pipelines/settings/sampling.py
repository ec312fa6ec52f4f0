"""How a served model draws its tokens, for the stages that generate."""

from dataclasses import dataclass
from typing import Annotated, Any

from predictor.ranges import CountOrNone, Range, check_ranges


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling of the served model; what is not given is as its own settings say."""

    temperature: Annotated[float, Range(0, 100)] | None = None
    """Temperature of the draws; 0 takes the likeliest token."""
    top_p: Annotated[float, Range(0, 1, (True, False))] | None = None
    """Draw among the likeliest tokens that hold this share of the probability; 1: among all."""
    top_k: CountOrNone | None = None
    """Draw among so many of the likeliest tokens; 0: among all."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)

    @property
    def given(self) -> dict[str, float]:
        """What is given, by name."""
        values = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {name: value for name, value in values.items() if value is not None}

    def apply(self, config: Any) -> None:
        """Change a `GenerationConfig` of transformers: what neither says limits nothing."""
        if self.given:
            config.do_sample = self.temperature != 0
        if not config.do_sample:
            config.temperature = config.top_p = config.top_k = None
            return
        for name, unlimited in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 0)):
            value = self.given.get(name, getattr(config, name))
            setattr(config, name, unlimited if value is None else value)
