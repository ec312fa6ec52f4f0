"""How long an engine's answer was, read off its bytes as they pass: JSON or server-sent events of OpenAI's APIs."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from predictor.records.log_rows import CUT
from predictor.records.values import whole_number

_MAX_KEPT = 1 << 22
# An event that says how the answer ended or how many tokens it has; others are counted without being parsed.
_TELLING = re.compile(rb'"(?:finish_reason|usage|status)"\s*:\s*[^n\s]')
_HAS_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|text|arguments|delta)"\s*:\s*"[^"]')


@dataclass(frozen=True, slots=True)
class Length:
    """Tokens of an answer; `is_cut` where it would have gone on."""

    num_tokens: int
    is_cut: bool


class AnswerReader:
    """Hears the bytes of one answer. `num_tokens` is what has come so far, of a stream by counting its events."""

    def __init__(self, *, is_stream: bool) -> None:
        self._is_stream = is_stream
        self._rest = bytearray()
        self._usage: int | None = None
        self._reason: str | None = None
        self._is_several = self._is_too_long = False
        self.num_tokens = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._is_too_long:
            return
        self._rest += data
        if self._is_stream:
            *lines, rest = self._rest.split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                if line.startswith(b"data:"):
                    self._take_event(bytes(line[5:]))
        self._is_too_long = len(self._rest) > _MAX_KEPT
        if self._is_too_long:
            self._rest.clear()

    def length(self) -> Length | None:
        """Return the length of the answer, which has ended; None where it does not say, or holds several answers."""
        if not self._is_stream and not self._is_too_long:
            self._take(_parsed(bytes(self._rest)))
        if self._reason is None or self._is_several:
            return None
        is_cut = self._reason.lower() in CUT or self._reason == "incomplete"
        # The end token is no event of a stream.
        num_tokens = self._usage if self._usage is not None else self.num_tokens + (not is_cut)
        return Length(num_tokens, is_cut) if num_tokens > 0 and (self._usage is not None or self._is_stream) else None

    def _take_event(self, event: bytes) -> None:
        self.num_tokens += _HAS_TEXT.search(event) is not None
        if _TELLING.search(event) is not None:
            self._take(_parsed(event))

    def _take(self, value: Any) -> None:
        if not isinstance(value, Mapping):
            return
        if isinstance(value.get("response"), Mapping):  # events of the responses API
            value = value["response"]
        usage = value.get("usage")
        if isinstance(usage, Mapping):
            count = whole_number(usage.get("completion_tokens", usage.get("output_tokens")))
            self._usage = count if count is not None and count >= 0 else self._usage
        choices = value.get("choices")
        if isinstance(choices, list):
            self._is_several = self._is_several or len(choices) > 1
            reasons = [choice.get("finish_reason") for choice in choices if isinstance(choice, Mapping)]
            self._reason = next((reason for reason in reasons if isinstance(reason, str)), self._reason)
        elif value.get("status") in ("completed", "incomplete"):
            self._reason = value["status"]


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (RecursionError, ValueError):
        return None
