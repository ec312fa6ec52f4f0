"""Rows of production logs (OpenAI batches, gateways, tracers) unfolded into the fields of records."""

import json
from collections.abc import Mapping
from typing import Any

from predictor.records.columns import our_names
from predictor.records.values import present, whole_number

LOG_KEYS = frozenset(
    {
        "request", "request_body", "requestBody", "body", "proxy_server_request", "response", "response_body",
        "responseBody", "choices", "usage", "usageDetails", "usage_details", "input", "output", "modelParameters",
        "model_parameters", "promptTokens", "completionTokens", "finish_reason", "stop_reason", "custom_id", "error",
        "startTime", "extra_body", "instructions", "reasoning_effort", "reasoning", "thinking", "max_completion_tokens",
    }
)  # fmt: skip
"""Keys that show a log, or that a request or an answer in one has."""
LEFT_OUT = "left_out"
"""Field that says why a row has no length, in a few words."""
CUT = frozenset({"length", "max_tokens", "max_output_tokens", "content_filter", "abort", "aborted", "cancelled"})
"""Why an answer ended that would have gone on."""

_REQUESTS = ("request", "request_body", "requestBody", "proxy_server_request", "body")
_RESPONSES = ("response", "response_body", "responseBody")
_USAGES = ("usage", "usageDetails", "usage_details")
_PARAMETERS = ("modelParameters", "model_parameters", "extra_body")
_OUTPUT_COUNTS = ("completion_tokens", "output_tokens", "completionTokens", "output", "candidatesTokenCount")
_INPUT_COUNTS = ("prompt_tokens", "input_tokens", "promptTokens", "input", "promptTokenCount")
_CACHED_COUNTS = ("cache_read_input_tokens", "cache_creation_input_tokens")  # which Anthropic counts apart
_API_KEYS = frozenset({"choices", "usage", "messages", "model", "body", *_OUTPUT_COUNTS, *_INPUT_COUNTS})


def our_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row under our names of fields, absent values left out; a log's request and answer are unfolded.

    A log's answer that has no count of tokens is put after the messages, to be counted by a tokenizer.
    """
    fields = present(row)
    has_request = bool(_first_object(fields, _REQUESTS))
    if not LOG_KEYS.isdisjoint(fields):
        fields = _unfolded(fields)
    fields = {ours: fields[name] for ours, name in our_names(tuple(fields)).items()}
    if has_request and not any(fields.get(name) for name in ("answer", "output_len", "output_lens")):
        fields.pop("answer", None)  # an empty one is what some gateways write of a request that broke off
        fields.setdefault(LEFT_OUT, "no token generated" if "output_len" in fields else "no answer")
    if not {"answer", "input", "finish_reason"}.isdisjoint(fields):
        _settle(fields)
    if fields.get("recorded") is True and whole_number(fields.get("output_len")) == 0:
        fields.setdefault(LEFT_OUT, "no token generated")
    if LEFT_OUT in fields:
        fields.pop("output_len", None)
    if isinstance(fields.get("messages"), str):
        fields["messages"] = _listed(fields["messages"])
    if (size := whole_number(fields.get("num_prompt_tokens"))) is not None:
        fields["num_prompt_tokens"] = size
    return fields


def _unfolded(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row along with those of its request and of its answer."""
    request = _first_object(fields, _REQUESTS)
    is_log = bool(request)
    request = {**request, **_object(request.get("body"))} if "body" in request else request
    response = _first_object(fields, _RESPONSES)
    status = whole_number(response.get("status_code"))
    response = _object(response["body"]) if isinstance(response.get("body"), dict | str) else response
    nested = (*_USAGES, *_PARAMETERS, *(name for name in (*_REQUESTS, *_RESPONSES) if _object(fields.get(name))))
    flat = {name: value for name, value in fields.items() if name not in nested}
    parameters = [present(_object(source.get(name))) for source in (request, fields) for name in _PARAMETERS]
    whole = {**present(request), **{k: v for part in parameters for k, v in part.items()}, **flat}
    whole.update(_answer_of({**fields, **response} if response else fields))
    if isinstance(asked := _listed(whole.get("input")), list | dict):  # a tracer's, or that of the Responses API
        whole.setdefault("messages", _messages_of(asked))
        del whole["input"]
    if not _listed(whole.get("messages", True)):  # a gateway that was told not to keep them
        del whole["messages"]
    if isinstance(whole.get("instructions"), str):
        whole.setdefault("system", whole.pop("instructions"))
    if fields.get("error") or response.get("error") or (status is not None and status >= 400):
        whole[LEFT_OUT] = "request failed"
    elif str(fields.get("type", "GENERATION")).upper() in ("SPAN", "EVENT"):
        whole[LEFT_OUT] = "no generation"
    if is_log or response or not {*_USAGES, "promptTokens"}.isdisjoint(fields):
        whole["recorded"] = True
    return whole


def _answer_of(response: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an answer says of its length: tokens, how it ended, its message; of several choices no length."""
    found: dict[str, Any] = {}
    usage = {k: v for name in _USAGES for k, v in _object(response.get(name)).items()}
    usage = {**{k: response[k] for k in ("promptTokens", "completionTokens") if k in response}, **usage}
    if (count := _output_count(usage)) is not None:
        found["output_len"] = count
    if (size := _count(usage, _INPUT_COUNTS)) is not None:
        found["num_prompt_tokens"] = size + sum(whole_number(usage.get(name)) or 0 for name in _CACHED_COUNTS)
    choices = response.get("choices")
    choices = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    if len(choices) > 1:
        found[LEFT_OUT] = "several answers in one row"
    first = choices[0] if choices else {}
    ended = first.get("finish_reason") or response.get("finish_reason") or response.get("stop_reason")
    if response.get("status") == "incomplete":
        ended = _object(response.get("incomplete_details")).get("reason", "length")
    if ended is not None:
        found["finish_reason"] = ended
    answer = first.get("message") or first.get("text") or (None if choices else _spoken(response))
    if answer is not None:
        found["answer"] = answer
    return found


def _spoken(response: Mapping[str, Any]) -> Any:
    """Return the answer of a row or body without choices: Anthropic's content, a tracer's or the Responses' output."""
    output = response.get("output")
    if isinstance(output, list):
        output = next((item for item in reversed(output) if isinstance(item, dict) and "content" in item), None)
    if output is None and response.get("role") == "assistant":
        output = {"role": "assistant", "content": response.get("content")}
    return output


def _settle(fields: dict[str, Any]) -> None:
    """Make instruction and input one prompt, put an uncounted answer after the messages, read how the answer ended."""
    extra, answer = fields.pop("input", None), fields.pop("answer", None)
    if isinstance(extra, str):
        known = fields.get("prompt")
        fields["prompt"] = f"{known}\n\n{extra}" if isinstance(known, str) else extra
    if answer is not None and not {"output_len", "output_lens", LEFT_OUT} & set(fields):
        asked = fields.get("messages", fields.get("prompt"))
        said = answer if isinstance(answer, list) else [answer]
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        if isinstance(messages, list) and all(isinstance(part, str | dict) for part in said):
            fields.pop("prompt", None)
            fields["messages"] = [*messages, *(_as_message(part) for part in said)]
    ended = fields.pop("finish_reason", None)
    if ended is not None and "is_truncated" not in fields:
        reasons = ended if isinstance(ended, list) else [ended]
        flags = [str(reason).lower() in CUT for reason in reasons]
        fields["is_truncated"] = flags if isinstance(ended, list) else flags[0]


def _as_message(part: str | dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": part} if isinstance(part, str) else {"role": "assistant", **part}


def _listed(value: Any) -> Any:
    """Return a list or an object that is written as JSON text, anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(value)
        except (RecursionError, ValueError):
            return value
        is_object = isinstance(found, dict) and (not found or "messages" in found)
        return (
            found if is_object or (isinstance(found, list) and all(isinstance(part, dict) for part in found)) else value
        )
    return value


def _messages_of(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("messages") or value.get("prompt") or [value]
    return value


def _output_count(usage: Mapping[str, Any]) -> int | None:
    """Return the tokens generated; those of the reasoning are added where they were plainly counted apart."""
    count = _count(usage, _OUTPUT_COUNTS)
    details = {**_object(usage.get("completion_tokens_details")), **_object(usage.get("output_tokens_details"))}
    reasoning = whole_number(details.get("reasoning_tokens")) or 0
    return count if count is None or count >= reasoning else count + reasoning


def _count(usage: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((count for name in names if (count := whole_number(usage.get(name))) is not None), None)


def _first_object(fields: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return next((found for name in names if (found := _object(fields.get(name)))), {})


def _object(value: Any) -> dict[str, Any]:
    """Return an object, or one of an API in JSON text; an empty one for anything else."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return {}
    try:
        found = json.loads(value)
    except (RecursionError, ValueError):
        return {}
    # A model's answer may be JSON, too; it is taken for the API's only where it looks like that.
    return found if isinstance(found, dict) and not _API_KEYS.isdisjoint(found) else {}
