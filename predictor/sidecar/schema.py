"""Bodies of the sidecar's requests and responses; lengths are in tokens. They make its OpenAPI page."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Tag, model_validator

from predictor.records.chat_turns import ChatOptions
from predictor.sidecar.answers import Source
from predictor.sidecar.asks import MAX_TOKENS, Ask, asks_of
from predictor.sidecar.feedback import State, Verdict

MAX_PROMPTS = 4096
MAX_MESSAGES = 4096

# Variants of a report; they show in the place of an error, where no field has such a name.
VARIANTS = BY_ID, BY_BOUND = "<id>", "<bound>"

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Count = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Tau = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False, description="probability allowed below the bound")]
RequestId = Annotated[str, Field(min_length=1, max_length=256)]
Model = Annotated[
    str,
    Field(
        max_length=1024,
        description="served model; one that the predictor does not know is read as `--like` says, by default as "
        "`average`; like:NAME by the family, size and thinking that a name tells",
    ),
]


class _Body(BaseModel):
    """A body of which unknown fields are ignored: requests to an engine have many."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class PromptBody(_Body):
    """A prompt as an engine is asked: `prompt`, `messages` or `input`; the last user message is read."""

    prompt: str | list[str] | list[int] | list[list[int]] | None = Field(
        None, description="text; several texts are several prompts; token ids are not read"
    )
    messages: Annotated[list[Any], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    input: str | list[Any] | None = Field(None, description="text or items, as in OpenAI's responses")
    request_id: RequestId | None = Field(None, description="give it to report back under it at /v1/feedback")
    max_new_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    max_output_tokens: Tokens | None = None
    generated_tokens: Count = Field(0, description="tokens of the answer that are out already; for `ends_within`")
    # What `predictor.records.request_context` reads, under the names of several APIs; checked there.
    tools: Any = None
    temperature: Any = None
    n: Any = None
    response_format: Any = None
    chat_template_kwargs: Any = None
    instructions: Any = None
    system: Any = None
    thinking: Any = None
    thinking_budget: Any = None
    reasoning: Any = None
    reasoning_effort: Any = None

    def given(self) -> dict[str, Any]:
        """Return the fields that the request names, by name."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class PredictRequest(PromptBody):
    """One prompt or, in `prompts`, several."""

    prompts: Annotated[list[PromptBody] | None, FailFast(), Field(min_length=1, max_length=MAX_PROMPTS)] = None
    tau: Tau | None = None
    model: Model | None = None
    deadline_ms: Annotated[float, Field(gt=0, le=60_000, allow_inf_nan=False)] | None = Field(
        None, description="after this many milliseconds the marginal bound is the answer"
    )
    with_survival: bool = Field(False, description="whether to return P(length > edge) on the bin edges")
    ends_within: Annotated[tuple[Tokens, ...], FailFast(), Field(max_length=64)] = Field(
        (), description="numbers h of tokens: asks for P(length <= generated_tokens + h | length > generated_tokens)"
    )

    @model_validator(mode="after")
    def _holds_a_prompt(self) -> "PredictRequest":
        given = [name for name in ("prompt", "messages", "input", "prompts") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give one of prompt, messages, input and prompts, not {found}")
        return self

    def asks(self, chat_options: ChatOptions | None) -> list[Ask]:
        """Return the prompts as the sidecar takes them."""
        bodies = self.prompts if self.prompts is not None else [self]
        return [ask for body in bodies for ask in asks_of(body.given(), chat_options)]


class Prediction(BaseModel):
    """The answer to one prompt; `source` is `fallback` where the bound ignores the prompt."""

    request_id: str | None
    output_len_lower_bound: int
    output_len_median: int
    source: Source
    reason: str | None = Field(description="why it is a fallback")
    survival: list[float] | None = Field(description="P(length > edge); null unless asked for, and for a fallback")
    ends_within: list[float] | None = Field(description="probabilities asked for; null unless asked for")


class PredictResponse(BaseModel):
    """Predictions in the order of the prompts; `model` is the one that was read."""

    tau: float
    model: str
    bin_edges: list[int] | None
    predictions: list[Prediction]


class BoundReport(_Body):
    """What became of a bound that the client itself kept; only finished requests can be reported so."""

    output_len_lower_bound: Tokens
    num_tokens: Tokens
    state: Literal["finished"] = "finished"
    source: Source = "model"
    tau: Tau | None = None
    model: Model | None = None


class IdReport(_Body):
    """Tokens generated so far by a request whose prediction was asked with this `request_id`."""

    request_id: RequestId
    num_tokens: Count
    state: State

    @model_validator(mode="after")
    def _finished_with_tokens(self) -> "IdReport":
        if self.state == "finished" and self.num_tokens < 1:
            raise ValueError("num_tokens: a finished request has at least 1, the end token counts")
        return self


def _report_kind(report: Any) -> str:
    return BY_BOUND if isinstance(report, dict) and "output_len_lower_bound" in report else BY_ID


Report = Annotated[Annotated[IdReport, Tag(BY_ID)] | Annotated[BoundReport, Tag(BY_BOUND)], Discriminator(_report_kind)]


class FeedbackRequest(_Body):
    """Reports of any number of requests; a running request may be reported again and again."""

    reports: Annotated[list[Report], FailFast(), Field(min_length=1, max_length=4096)]


class FeedbackResponse(BaseModel):
    """What is known now of each reported request, in order; `unknown`: not remembered, or already over."""

    verdicts: list[Verdict]


class Status(BaseModel):
    """A state in one word."""

    status: str


class Problem(BaseModel):
    """What is wrong with a request, in one line."""

    error: str
