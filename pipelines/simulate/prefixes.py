"""Equal beginnings of prompts, as traces tell of them: hashes of parts of the prompt, or whose turn follows which."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scheduler.workload import DEFAULT_PREFIX_TOKENS

SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""Tokens that a hash may stand for: Qwen on Bailian has 16, Mooncake 512."""

Prefix = Sequence[Any]


def hashed(hashes: Sequence[Any], num_prompt_tokens: Sequence[int]) -> tuple[list[Prefix], int] | None:
    """Return the hashes of each prompt and the tokens that one stands for; None where no size explains how many.

    The last hash of a prompt may be of a part that is not full.
    """
    lists = [json.loads(each) if isinstance(each, str) and each.startswith("[") else each for each in hashes]
    if not all(each is None or isinstance(each, list) for each in lists):
        return None
    names: list[Prefix] = [each or [] for each in lists]
    counts = [(len(each), tokens) for each, tokens in zip(names, num_prompt_tokens, strict=True)]
    for size in SIZES:
        if any(count for count, _ in counts) and all(count == -(-tokens // size) for count, tokens in counts):
            return names, size
    return None


def of_chats(
    chats: Sequence[Any], parents: Sequence[Any], num_prompt_tokens: Sequence[int]
) -> tuple[list[Prefix], int] | None:
    """Return names for the parts of each prompt, and their tokens: a turn begins with the prompt of the turn before.

    The answer between them is not counted as common, since a request knows nothing of its answer. None where no turn
    follows another.
    """
    size, found, follows = DEFAULT_PREFIX_TOKENS, dict[Any, Prefix](), False
    prefixes: list[Prefix] = []
    for chat, parent, tokens in zip(chats, parents, num_prompt_tokens, strict=True):
        count, before = tokens // size, found.get(parent, ())
        follows |= bool(before)
        own = [f"{chat}:{place}" for place in range(min(count, len(before)), count)]
        found[chat] = [*before[:count], *own]
        prefixes.append(found[chat])
    return (prefixes, size) if follows else None


def prefixes_of(
    columns: Mapping[str, Sequence[Any]], theirs: Mapping[str, str], num_prompt_tokens: Sequence[int]
) -> tuple[list[Prefix], int, str] | None:
    """Return the prefix of each row, the tokens of a name and the columns that say so; None where none does.

    A column `prefix` is our own, which the workload reads and checks itself.
    """
    if theirs.get("prefix", "prefix") != "prefix" and (found := hashed(columns["prefix"], num_prompt_tokens)):
        return *found, theirs["prefix"]
    if not {"chat_id", "parent_chat_id"} <= columns.keys():
        return None
    found = of_chats(columns["chat_id"], columns["parent_chat_id"], num_prompt_tokens)
    return found and (*found, "chat_id and parent_chat_id")


def share_seen_before(prefixes: Sequence[Prefix], tokens_per_name: int, num_prompt_tokens: Sequence[int]) -> float:
    """Return the share of the prompt tokens that are in full parts that an earlier prompt began with."""
    seen, common = set[Any](), 0
    for prefix, tokens in zip(prefixes, num_prompt_tokens, strict=True):
        full = list(prefix[: tokens // tokens_per_name])
        known = next((place for place, name in enumerate(full) if name not in seen), len(full))
        common += known * tokens_per_name
        seen.update(full)
    return common / max(1, sum(num_prompt_tokens))
