"""What is known of a request when it arrives."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from scheduler.errors import InputError
from scheduler.forecast import Forecast, through_bounds


@dataclass(frozen=True, slots=True)
class Request:
    """Facts of one request at arrival. Its true output length is not among them: that lives in the executor.

    Attributes:
        request_id: Name of the request, unique in a workload.
        num_prompt_tokens: Tokens of the prompt.
        max_new_tokens: The most tokens it may generate, as the client asked.
        arrival_time: In the clock of the executor (iterations or seconds).
        output_len_lower_bound: Tokens it generates at least, with the probability the predictor was asked for.
        output_len_upper_bound: Tokens it generates at most; `max_new_tokens` where nothing better is known.
        output_len_prediction: Central prediction (median) in tokens, if there is one.
        forecast: Predicted distribution of the output length, if there is one.
        priority: Lower goes first and is evicted last, whatever the lengths.
        prefix: Names of the parts that the prompt begins with, anything but negative numbers; where the engine has
            prefix caching, equal ones are stored once. A name stands for all tokens up to the end of its part.
        prefix_tokens: Tokens that each name stands for; 0 for a block of the engine.
        group: Names what it belongs to with others of like lengths, such as answers to one prompt; "" for none.
        service_class: Tenant or kind, for figures and limits of its own; "" where none is said.
    """

    request_id: str
    num_prompt_tokens: int
    max_new_tokens: int
    arrival_time: float = 0.0
    output_len_lower_bound: int = 1
    output_len_upper_bound: int | None = None
    output_len_prediction: int | None = None
    forecast: Forecast | None = None
    priority: int = 0
    prefix: Sequence[Hashable] = ()
    prefix_tokens: int = 0
    group: str = ""
    service_class: str = ""

    def forecast_or_bounds(self) -> Forecast:
        """Return the forecast; where there is none, one drawn through the bounds and the prediction.

        A lower bound is taken to be reached with probability 0.9, an upper one with 0.05; `max_new_tokens` stands for
        an upper bound that is not known, the middle of the bounds for the prediction.
        """
        if self.forecast is not None:
            return self.forecast
        upper = self.max_new_tokens if self.output_len_upper_bound is None else self.output_len_upper_bound
        return through_bounds(self.output_len_lower_bound, self.predicted_len(), upper, self.max_new_tokens)

    def predicted_len(self) -> int:
        """Return the central prediction; where there is none, the middle of the bounds, as `forecast_or_bounds`."""
        if self.output_len_prediction is not None:
            return self.output_len_prediction
        upper = self.max_new_tokens if self.output_len_upper_bound is None else self.output_len_upper_bound
        return (self.output_len_lower_bound + upper) // 2

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: A field is out of its range; the message names it.
        """
        lower, upper = self.output_len_lower_bound, self.output_len_upper_bound
        checks = {
            f"num_prompt_tokens is {self.num_prompt_tokens}, must be >= 0": self.num_prompt_tokens >= 0,
            f"max_new_tokens is {self.max_new_tokens}, must be >= 1": self.max_new_tokens >= 1,
            f"arrival_time is {self.arrival_time}, must be >= 0 and finite": 0 <= self.arrival_time < float("inf"),
            f"output_len_lower_bound is {lower}, must be in 1..{self.max_new_tokens} (max_new_tokens)": 1
            <= lower
            <= self.max_new_tokens,
            f"output_len_upper_bound is {upper}, must be >= {lower} (output_len_lower_bound)": upper is None
            or upper >= lower,
        }
        for message, holds in checks.items():
            if not holds:
                raise InputError(f"request {self.request_id!r}: {message}")
