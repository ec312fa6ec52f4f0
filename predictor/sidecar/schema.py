"""Bodies of the sidecar's requests and responses; lengths are in tokens. They make its OpenAPI page."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Tag, field_validator, model_validator

from predictor.records.chat_turns import ChatOptions, open_prompt
from predictor.records.messages import Turn, is_unicode, last_user_text, turns_of
from predictor.sidecar.answers import Ask, Source
from predictor.sidecar.feedback import State, Verdict

MAX_TOKENS = 2**31 - 1
MAX_PROMPTS = 4096
NOT_UNICODE = "half of a surrogate pair, which is not valid Unicode"

# Variants of a body; they show in the place of an error, where no field has such a name.
VARIANTS = TEXT, CHAT, BATCH, BY_ID, BY_BOUND = "<text>", "<chat>", "<batch>", "<id>", "<bound>"

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Tau = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False, description="probability allowed below the bound")]
RequestId = Annotated[str, Field(min_length=1, max_length=256)]
Model = Annotated[str, Field(max_length=256, description="served model; `average`: one the predictor does not know")]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Message(BaseModel):
    """A chat message; the last one of role `user` is read, with those before it where the predictor was trained so."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    role: Annotated[str, Field(max_length=64)]
    content: Any = Field(None, description="text, or a list of parts of which those that are text are read")


class _Prompt(_Body):
    request_id: RequestId | None = Field(None, description="give it to report back under it at /v1/feedback")
    max_new_tokens: Tokens | None = None


class TextPrompt(_Prompt):
    """A prompt as text."""

    prompt: str

    @field_validator("prompt")
    @classmethod
    def _holds_text(cls, value: str) -> str:
        return _checked(value)

    def ask(self, chat_options: ChatOptions | None) -> Ask:
        """Return the prompt as the sidecar takes it."""
        return Ask(self.prompt, self.max_new_tokens, self.request_id)


class ChatPrompt(_Prompt):
    """A prompt as chat messages."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]

    @field_validator("messages")
    @classmethod
    def _holds_user_text(cls, value: list[Message]) -> list[Message]:
        turns = _turns(value)
        if not all(is_unicode(turn.text) for turn in turns):
            raise ValueError(NOT_UNICODE)
        if not last_user_text(turns).strip():
            raise ValueError("no message of role user with text as its content")
        return value

    def ask(self, chat_options: ChatOptions | None) -> Ask:
        """Return the prompt as the sidecar takes it, after the earlier turns that `chat_options` ask for."""
        turns = _turns(self.messages)
        prompt = None if chat_options is None else open_prompt(turns, chat_options)
        return Ask(prompt or last_user_text(turns), self.max_new_tokens, self.request_id)


def _checked(text: str) -> str:
    if not text.strip():
        raise ValueError("empty")
    if not is_unicode(text):
        raise ValueError(NOT_UNICODE)
    return text


def _turns(messages: list[Message]) -> list[Turn]:
    return turns_of([message.model_dump() for message in messages])


class _Options(_Body):
    tau: Tau | None = None
    model: Model | None = None
    deadline_ms: Annotated[float, Field(gt=0, le=60_000, allow_inf_nan=False)] | None = Field(
        None, description="after this many milliseconds the marginal bound is the answer"
    )
    with_survival: bool = Field(False, description="whether to return P(length > edge) on the bin edges")


class TextRequest(TextPrompt, _Options):
    """One prompt as text."""

    def asks(self, chat_options: ChatOptions | None) -> list[Ask]:
        """Return the prompts as the sidecar takes them."""
        return [self.ask(chat_options)]


class ChatRequest(ChatPrompt, _Options):
    """One prompt as chat messages."""

    def asks(self, chat_options: ChatOptions | None) -> list[Ask]:
        """Return the prompts as the sidecar takes them."""
        return [self.ask(chat_options)]


def _kind(body: Any) -> str:
    given = body if isinstance(body, dict) else {}
    return BATCH if "prompts" in given else CHAT if "messages" in given else TEXT


Prompt = Annotated[Annotated[TextPrompt, Tag(TEXT)] | Annotated[ChatPrompt, Tag(CHAT)], Discriminator(_kind)]


class BatchRequest(_Options):
    """Several prompts."""

    prompts: Annotated[list[Prompt], FailFast(), Field(min_length=1, max_length=MAX_PROMPTS)]

    def asks(self, chat_options: ChatOptions | None) -> list[Ask]:
        """Return the prompts as the sidecar takes them."""
        return [prompt.ask(chat_options) for prompt in self.prompts]


PredictRequest = Annotated[
    Annotated[TextRequest, Tag(TEXT)] | Annotated[ChatRequest, Tag(CHAT)] | Annotated[BatchRequest, Tag(BATCH)],
    Discriminator(_kind),
]


class Prediction(BaseModel):
    """The answer to one prompt; `source` is `fallback` where the bound ignores the prompt."""

    request_id: str | None
    output_len_lower_bound: int
    output_len_median: int
    source: Source
    reason: str | None = Field(description="why it is a fallback")
    survival: list[float] | None = Field(description="P(length > edge); null unless asked for, and for a fallback")


class PredictResponse(BaseModel):
    """Predictions in the order of the prompts."""

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
    num_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)]
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

    reports: Annotated[list[Report], Field(min_length=1, max_length=4096)]


class FeedbackResponse(BaseModel):
    """What is known now of each reported request, in order; `unknown`: not remembered, or already over."""

    verdicts: list[Verdict]


class Status(BaseModel):
    """A state in one word."""

    status: str


class Problem(BaseModel):
    """What is wrong with a request, in one line."""

    error: str
