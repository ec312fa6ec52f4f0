"""What a request says apart from its prompt, read alike from the row of a log and from the body of an API."""

from collections.abc import Mapping, Sequence
from typing import Any

from predictor.prompts.context import RequestContext
from predictor.records.messages import Turn
from predictor.records.values import flag, real_number, whole_number

CAPS = ("max_new_tokens", "max_tokens", "max_completion_tokens", "max_output_tokens")
"""Names that APIs and logs give the most tokens that an answer may have."""
_TURN_COUNTS = ("num_earlier_turns", "earlier_characters", "last_answer_characters")


def request_context(fields: Mapping[str, Any], earlier: Sequence[Turn] | None) -> RequestContext:
    """Return what `fields` and the turns before the prompt say of a request.

    What they do not mention is unknown, and so is a value that no request has. Training and serving read the same
    fields here, so that what a network learnt of a log is what it is told of a request.

    Args:
        fields: of a record, or the body of a request as OpenAI's, Anthropic's or vLLM's API takes it.
        earlier: the turns before the prompt, the system's included; None where the conversation is not known.
    """
    caps = [cap for name in CAPS if (cap := _count(fields.get(name))) is not None]
    temperature = real_number(fields.get("temperature"))
    budget = _count(fields.get("thinking_budget"))
    tools = fields.get("tools") if fields.get("num_tools") is None else fields["num_tools"]
    return RequestContext(
        **_of_turns(fields, earlier),
        num_tools=len(tools) if isinstance(tools, list | dict) else _count(tools),
        max_new_tokens=min(caps, default=None),
        temperature=temperature if temperature is None or temperature >= 0 else None,
        thinking=_thinking(fields),
        thinking_budget=_budget(fields.get("thinking")) if budget is None else budget,
        is_json=_is_json(fields),
        num_answers=_count(fields.get("n") if fields.get("num_answers") is None else fields["num_answers"]),
    )


def _of_turns(fields: Mapping[str, Any], earlier: Sequence[Turn] | None) -> dict[str, Any]:
    given = next((fields[name] for name in ("system", "instructions", "system_prompt") if name in fields), None)
    given = given if isinstance(given, str) else None
    if earlier is None:
        return {"system_prompt": given, **{name: _count(fields.get(name)) for name in _TURN_COUNTS}}
    system = [turn.text for turn in earlier if turn.role == "system"]
    if given and given not in system:
        system.insert(0, given)
    spoken = [turn for turn in earlier if turn.role != "system"]
    answers = [turn.text for turn in spoken if turn.role == "assistant"]
    return {
        "system_prompt": "\n\n".join(system),
        "num_earlier_turns": len(spoken),
        "earlier_characters": sum(len(turn.text) for turn in spoken),
        "last_answer_characters": len(answers[-1]) if answers else 0,
    }


def _count(value: Any) -> int | None:
    count = whole_number(value)
    return count if count is not None and count >= 0 else None


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


def _is_json(fields: Mapping[str, Any]) -> bool | None:
    value = fields.get("response_format")
    kind = value.get("type") if isinstance(value, Mapping) else value
    return flag(fields.get("is_json")) if kind is None else str(kind).lower() not in ("text", "")
