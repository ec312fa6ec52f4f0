"""How long an engine's answers were, read off their bytes as they pass: JSON or server-sent events of OpenAI's APIs."""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from predictor.records.log_rows import CUT
from predictor.records.values import whole_number

_MAX_KEPT = 1 << 22
CODINGS = frozenset({"gzip", "x-gzip", "deflate", "identity"})
"""Content codings that are read; what an engine is asked for on behalf of a client is among them."""
# An event that says how the answer ended or how many tokens it has; others are counted without being parsed.
_TELLING = re.compile(rb'"(?:finish_reason|usage|status)"\s*:\s*[^n\s]')
_HAS_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|text|arguments|delta)"\s*:\s*"[^"]')
_TEXTS = ("content", "reasoning_content", "reasoning", "text", "arguments")


@dataclass(frozen=True, slots=True)
class Length:
    """Tokens of an answer; `is_cut` where it would have gone on."""

    num_tokens: int
    is_cut: bool


class AnswerReader:
    """Hears the bytes of the answers to one request. `num_tokens` has what has come so far of each, by its index.

    Of a stream that is by counting events. Several answers to a prompt (`n`) share one count in the usage: it is
    divided by their events, or without a stream by the sizes of their texts.
    """

    def __init__(self, *, is_stream: bool, num_answers: int = 1, coding: str = "identity") -> None:
        """Expect so many answers, as a stream of events or one JSON, in one of `CODINGS`."""
        self._is_stream = is_stream
        self._decoder = None if coding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._rest = bytearray()
        self._usage: int | None = None
        self._reasons: list[str | None] = [None] * num_answers
        self._sizes = [0] * num_answers
        self._is_lost = False
        self.num_tokens = [0] * num_answers

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._is_lost:
            return
        self._rest += self._decoded(data)
        if self._is_stream:
            *lines, rest = self._rest.split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                if line.startswith(b"data:"):
                    self._take_event(bytes(line[5:]))
        if len(self._rest) > _MAX_KEPT:
            self._lose()

    def _decoded(self, data: bytes) -> bytes:
        if self._decoder is None:
            return data
        try:
            plain = self._decoder.decompress(data, _MAX_KEPT)
        except zlib.error:  # among others deflate without its header, which some servers send
            self._lose()
            return b""
        if self._decoder.unconsumed_tail:
            self._lose()
            return b""
        return plain

    def _lose(self) -> None:
        self._is_lost = True
        self._rest.clear()

    def lengths(self) -> list[Length | None]:
        """Return the length of each answer, which has ended; None where it does not say."""
        if not self._is_stream and not self._is_lost:
            self._take(_parsed(bytes(self._rest)))
        if self._is_lost:
            return [None] * len(self._reasons)
        counts: Sequence[int | None] = [None] * len(self._reasons)
        if self._usage is not None:
            counts = _shares(self._usage, self.num_tokens if self._is_stream else self._sizes)
        lengths = zip(counts, self.num_tokens, self._reasons, strict=True)
        return [self._length(count, heard, reason) for count, heard, reason in lengths]

    def _length(self, count: int | None, heard: int, reason: str | None) -> Length | None:
        if reason is None:
            return None
        is_cut = reason.lower() in CUT or reason == "incomplete"
        # The end token is no event of a stream.
        num_tokens = count if count is not None else heard + (not is_cut)
        return Length(num_tokens, is_cut) if num_tokens > 0 and (count is not None or self._is_stream) else None

    def _take_event(self, event: bytes) -> None:
        has_text = _HAS_TEXT.search(event) is not None
        if len(self.num_tokens) == 1:
            self.num_tokens[0] += has_text
            if _TELLING.search(event) is not None:
                self._take(_parsed(event))
            return
        value = _parsed(event)
        if has_text:
            for index, _ in self._choices(value):
                self.num_tokens[index] += 1
        self._take(value)

    def _take(self, value: Any) -> None:
        if not isinstance(value, Mapping):
            return
        if isinstance(value.get("response"), Mapping):  # events of the responses API
            value = value["response"]
        usage = value.get("usage")
        if isinstance(usage, Mapping):
            count = whole_number(usage.get("completion_tokens", usage.get("output_tokens")))
            self._usage = count if count is not None and count >= 0 else self._usage
        if value.get("status") in ("completed", "incomplete") and "choices" not in value:
            self._reasons[0] = value["status"]
        for index, choice in self._choices(value):
            reason = choice.get("finish_reason")
            self._reasons[index] = reason if isinstance(reason, str) else self._reasons[index]
            if not self._is_stream:
                self._sizes[index] += _text_size(choice)

    def _choices(self, value: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the choices in a part of the answers by index; of more than were asked for nothing is known."""
        given = value.get("choices") if isinstance(value, Mapping) else None
        choices = [choice for choice in given if isinstance(choice, Mapping)] if isinstance(given, list) else []
        for place, choice in enumerate(choices):
            index = choice.get("index", place)
            if type(index) is not int or not 0 <= index < len(self._reasons):
                self._lose()
                return
            yield index, choice
        if len(choices) > len(self._reasons):
            self._lose()


def _shares(total: int, weights: Sequence[int]) -> list[int]:
    """Return `total` tokens divided by the weights, each share at least 1 and the sum kept where that allows."""
    if len(weights) == 1:
        return [total]
    whole = sum(weights) or len(weights)
    parts = [weight if sum(weights) else 1 for weight in weights]
    ends = [round(total * sum(parts[: k + 1]) / whole) for k in range(len(parts))]
    return [max(1, end - start) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _text_size(value: Any) -> int:
    """Return the characters of what a choice says, wherever it stands: text, message, reasoning, calls of tools."""
    if isinstance(value, list):
        return sum(_text_size(each) for each in value)
    if not isinstance(value, Mapping):
        return 0
    said = sum(len(value[name]) for name in _TEXTS if isinstance(value.get(name), str))
    return said + sum(_text_size(value.get(name)) for name in ("message", "tool_calls", "function"))


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (RecursionError, ValueError):
        return None
