"""Names of columns as people write them, and ours: one table for JSON, CSV and parquet."""

import re
from functools import lru_cache

ALIASES = {
    "output_lens": ("output_lens",),
    "output_len": (
        "output_len", "output_length", "generated_tokens", "completion_tokens", "output_tokens", "num_output_tokens",
        "response_tokens", "num_decode_tokens", "token_size", "decode", "n_tok", "osl",
    ),
    "num_prompt_tokens": (
        "num_prompt_tokens", "context_tokens", "input_length", "prompt_tokens", "input_tokens", "request_tokens",
        "num_prefill_tokens", "prompt_size", "prompt_len", "prefill", "input_len", "isl",
    ),
    "arrival_time": (
        "arrival_time", "timestamp", "arrived_at", "arrival_timestamp", "start_time", "created_at", "created",
    ),
    "max_new_tokens": ("max_new_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens"),
    "model": ("model", "model_name", "model_id"),
    "group": ("group", "session_id", "conversation_group"),
    "prompt": ("prompt", "instruction", "question", "query"),
    "answer": ("completion", "response", "answer", "output"),
    "tools": ("tools", "functions"),
    "system": ("system", "system_prompt"),
    "prefix": ("prefix", "hash_ids"),
    "class": ("class", "log_type"),
}  # fmt: skip
"""Our name of a column, and the names that it has in public files, the first preferred; spelling is set aside."""


OTHERS = frozenset(
    {
        "conversation", "conversations", "messages", "conversation_id", "conversation_hash", "prompt_id", "id",
        "request_id", "language", "redacted", "split", "dataset", "is_truncated", "recorded", "temperature", "n",
        "response_format", "thinking_budget", "chat_template_kwargs", "system_prompt", "num_earlier_turns",
        "earlier_characters", "last_answer_characters", "num_tools", "is_json", "num_answers", "priority", "renewals",
        "survival", "output_len_lower_bound", "output_len_upper_bound", "output_len_prediction", "type", "delay",
        "input_lens", "errors", "start_times", "prompts", "generated_texts", "status", "incomplete_details", "role",
        "content", "chat_id", "parent_chat_id", "prefix_tokens",
    }
)  # fmt: skip
"""Other columns that are read under their own name."""


def spelling(name: str) -> str:
    """Return a column's name without case, blanks and separators: `Request tokens` is `request_tokens`."""
    return re.sub(r"[\s_\-]+", "", name).lower()


_CANONICAL = {spelling(alias): (ours, rank) for ours, known in ALIASES.items() for rank, alias in enumerate(known)}


@lru_cache(maxsize=1024)
def our_names(names: tuple[str, ...]) -> dict[str, str]:
    """Return which of a row's columns is which of ours, {ours: theirs}; others keep their own name.

    Where two mean the same, the one that stands first in `ALIASES` counts.
    """
    chosen: dict[str, tuple[int, str]] = {}
    for name in names:
        ours, rank = _CANONICAL.get(spelling(name), (name, 0))
        if ours not in chosen or (rank, name != ours) < (chosen[ours][0], chosen[ours][1] != ours):
            chosen[ours] = (rank, name)
    return {ours: name for ours, (_, name) in chosen.items()}


def is_known(name: str) -> bool:
    """Return whether a column is one that is read, in any spelling."""
    return name in OTHERS or spelling(name) in _CANONICAL
