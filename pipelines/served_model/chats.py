"""The conversation that a served model is sent."""

from predictor.records.rows import Row


def chat_of(row: Row) -> list[dict[str, str]]:
    """Return the conversation in a row up to the user's last turn, as a chat template takes it.

    A prompt is one turn, after the system's where the row has one.

    Raises:
        InputError: There is none, or it has no user's turn.
    """
    prompt = row.prompt()
    if row.fields.get("messages") is None:
        return list(row.messages() or [{"role": "user", "content": prompt}])
    turns = row.turns()
    last = max(k for k, turn in enumerate(turns) if turn.role == "user")
    return [{"role": turn.role, "content": turn.text} for turn in turns[: last + 1]]
