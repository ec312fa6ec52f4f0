"""The tokens of the answers that ended: kept until their states are written, in a file that only grows."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.collect.draws import Answer, Key
from predictor.errors import InputError


class AnswerTokens:
    """A line for each answer that ended, next to the records. Writing one costs the same however many there are."""

    def __init__(self, out: Path) -> None:
        """Name the file for records `out`."""
        self.path = out.with_name(out.name + ".partial.tokens.jsonl")
        self._written: set[Key] = set()

    def read(self, ended: Mapping[Key, Answer]) -> dict[Key, list[int]]:
        """Return the tokens of the answers in `ended`, and be ready to add others.

        One that was added just before a kill may not be in `ended`: it was drawn again, and its later line counts.

        Raises:
            InputError: One is missing, or is not as long as it was.
        """
        found: dict[Key, list[int]] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]  # a kill may leave half a line
        remedy = "start again with --no-resume"
        try:
            for line in whole.splitlines():
                prompt, draw, tokens = json.loads(line)
                found[int(prompt), int(draw)] = [int(token) for token in tokens]
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.path}: damaged ({error}); {remedy}") from None
        for key, (length, _) in ended.items():
            if len(found.get(key, ())) != length:
                raise InputError(f"{self.path}: prompt {key[0]}, draw {key[1]}: not its {length} tokens; {remedy}")
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        self._written = set(ended)
        return {key: found[key] for key in ended}

    def add(self, answers: Mapping[Key, Sequence[int]]) -> None:
        """Append the answers that are not there yet; on the disk when it returns."""
        new = [key for key in answers if key not in self._written]
        if not new:
            return
        with self.path.open("ab") as lines:
            for key in new:
                lines.write(json.dumps([*key, list(answers[key])], separators=(",", ":")).encode() + b"\n")
            lines.flush()
            os.fsync(lines.fileno())
        self._written.update(new)

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)
