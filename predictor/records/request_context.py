"""What a request says beside its prompt, read from the fields of a log's row or of an API's body."""

from collections.abc import Mapping, Sequence
from dataclasses import fields as fields_of
from typing import Any

from predictor.prompts.context import RequestContext
from predictor.records.log_rows import IS_WHOLE
from predictor.records.messages import Turn
from predictor.records.values import flag, real_number, whole_number

_OWN = frozenset(field.name for field in fields_of(RequestContext))
_CAPS = ("max_new_tokens", "max_tokens", "max_completion_tokens", "max_output_tokens")


def request_context(
    fields: Mapping[str, Any], earlier: Sequence[Turn] | None, *, is_whole: bool | None = None
) -> RequestContext:
    """Return what `fields` and the turns before the prompt say of a request; what they do not mention is unknown.

    Args:
        fields: of a record, or the body of a request in OpenAI's form; a field under its name in `RequestContext` wins.
        earlier: the turns before the prompt, the system's included; None where the conversation is not known.
        is_whole: whether `fields` are all that the request said, so that a tool not mentioned was not offered;
            by default as the row of a log says.

    Raises:
        InputError: a value that no request has; names the field.
    """
    known = {name: fields[name] for name in _OWN & set(fields) if fields[name] is not None}
    whole = bool(fields.get(IS_WHOLE)) if is_whole is None else is_whole
    found: dict[str, Any] = {**(_of_turns(fields, earlier)), **_of_options(fields, is_whole=whole)}
    for name in ("num_tools", "num_answers", "num_earlier_turns", "earlier_characters", "last_answer_characters"):
        if name in known:
            found[name] = whole_number(known[name])
    for name in ("system_prompt", "is_json"):
        if name in known:
            found[name] = known[name]
    return RequestContext(**found)


def _of_turns(fields: Mapping[str, Any], earlier: Sequence[Turn] | None) -> dict[str, Any]:
    given = fields.get("system")
    system = [given] if isinstance(given, str) else []
    if earlier is None:
        return {"system_prompt": "\n\n".join(system)} if system else {}
    system += [turn.text for turn in earlier if turn.role == "system"]
    spoken = [turn for turn in earlier if turn.role != "system"]
    answers = [turn.text for turn in spoken if turn.role == "assistant"]
    return {
        "system_prompt": "\n\n".join(system),
        "num_earlier_turns": len(spoken),
        "earlier_characters": sum(len(turn.text) for turn in spoken),
        "last_answer_characters": len(answers[-1]) if answers else 0,
    }


def _of_options(fields: Mapping[str, Any], *, is_whole: bool) -> dict[str, Any]:
    cap = next((found for name in _CAPS if (found := whole_number(fields.get(name))) is not None), None)
    temperature = real_number(fields.get("temperature"))
    budget = whole_number(fields.get("thinking_budget"))
    return {
        "num_tools": _num_tools(fields.get("tools"), 0 if is_whole else None),
        "max_new_tokens": cap if cap is None or cap >= 0 else None,
        "temperature": temperature if temperature is None or temperature >= 0 else None,
        "thinking": _thinking(fields),
        "thinking_budget": budget if budget is not None and budget >= 0 else _budget(fields.get("thinking")),
        "is_json": _is_json(fields.get("response_format"), False if is_whole else None),
        "num_answers": whole_number(fields.get("n")) or (1 if is_whole else None),
    }


def _num_tools(tools: Any, default: int | None) -> int | None:
    count = len(tools) if isinstance(tools, list | dict) else whole_number(tools)
    return default if count is None or count < 0 else count


def _thinking(fields: Mapping[str, Any]) -> bool | None:
    """Return whether the model is to reason, as OpenAI, Anthropic, vLLM and our own records say it."""
    value, template, reasoning = fields.get("thinking"), fields.get("chat_template_kwargs"), fields.get("reasoning")
    if isinstance(value, Mapping):
        return value.get("type") != "disabled"
    if (known := flag(value)) is not None:
        return known
    if (budget := whole_number(value)) is not None:
        return budget != 0
    if isinstance(template, Mapping) and isinstance(template.get("enable_thinking"), bool):
        return bool(template["enable_thinking"])
    effort = fields.get("reasoning_effort") or (reasoning.get("effort") if isinstance(reasoning, Mapping) else None)
    return None if effort is None else str(effort).lower() not in ("none", "minimal")


def _budget(value: Any) -> int | None:
    budget = whole_number(value.get("budget_tokens") if isinstance(value, Mapping) else value)
    return budget if budget is not None and budget > 1 else None


def _is_json(value: Any, default: bool | None) -> bool | None:
    kind = value.get("type") if isinstance(value, Mapping) else value
    return default if kind is None else str(kind).lower() not in ("text", "")
