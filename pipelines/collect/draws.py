"""The answers so far, in a file that survives an interruption."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.files import write_json
from predictor.errors import InputError
from predictor.probe.states import StateSource

Key = tuple[int, int]
"""Prompt and draw, from 0."""
Answer = tuple[int, bool]
"""Length in tokens, and whether it was cut."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What there is at one moment.

    Going on from it leaves the lengths distributed as without an interruption. To drop the answers that had not ended
    and draw them afresh would not: those are the long ones. So they are continued, or where they cannot be, as on a
    server, they stay as cut and another answer is drawn for each.

    Attributes:
        ended: Answers that ended or reached the cap.
        begun: Tokens so far of those that are being generated here; where the tokens are kept, of the ended ones too.
        cut: Prompt and length of each answer that was lost on the way: it has at least so many tokens.
        num_prompt_tokens: By prompt, where a server counts them.
    """

    ended: Mapping[Key, Answer] = field(default_factory=dict)
    begun: Mapping[Key, Sequence[int]] = field(default_factory=dict)
    cut: Sequence[tuple[int, int]] = ()
    num_prompt_tokens: Mapping[int, int] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """How many tokens there are."""
        kept = sum(length for length, _ in self.ended.values()) + sum(length for _, length in self.cut)
        return kept + sum(map(len, self.begun.values()))


@dataclass(frozen=True, slots=True)
class Answerer:
    """What is known of the model that answered.

    Attributes:
        name: As the records call it.
        num_prompt_tokens: By prompt; None where a server did not count.
        states: What its states are of, where they were kept.
    """

    name: str
    num_prompt_tokens: Sequence[int | None]
    states: StateSource | None = None


class PartialFile:
    """What an interrupted call left next to its records."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """Name the file for records `out`, made with `settings`."""
        self.path, self._settings = out.with_name(out.name + ".partial.json"), dict(settings)

    def read(self) -> Collected:
        """Return what is there, or nothing; InputError where it was made with other settings or is damaged."""
        if not self.path.exists():
            return Collected()
        remedy = "remove it or use another --out"
        try:
            there = json.loads(self.path.read_bytes())
            ended = {(i, d): (int(length), bool(is_cut)) for i, d, length, is_cut in there["ended"]}
            begun = {(i, d): list(map(int, tokens)) for i, d, tokens in there["begun"]}
            cut = [(int(i), int(length)) for i, length in there["cut"]]
            sizes = {int(i): int(size) for i, size in there["num_prompt_tokens"]}
            made = dict(there["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.path}: damaged ({' '.join(str(error).split())}); {remedy}") from None
        for name in {**self._settings, **made}:
            value = self._settings.get(name)
            if made.get(name) != value:
                raise InputError(
                    f"{self.path}: holds answers made with {name} {made.get(name)}, now it is {value}; {remedy}"
                )
        return Collected(ended, begun, cut, sizes)

    def keep(self, collected: Collected) -> None:
        """Take what there is at one moment in place of what there was."""
        write_json(
            self.path,
            {
                "settings": self._settings,
                "ended": [[*key, *answer] for key, answer in collected.ended.items()],
                "begun": [[*key, list(tokens)] for key, tokens in collected.begun.items()],
                "cut": [list(each) for each in collected.cut],
                "num_prompt_tokens": [list(each) for each in collected.num_prompt_tokens.items()],
            },
        )

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)


def digest(chats: Sequence[Any]) -> str:
    """Return a short name of the prompts, to compare them by."""
    return hashlib.sha256(json.dumps([list(chat) for chat in chats], sort_keys=True).encode()).hexdigest()[:16]
