"""JSON bodies to checked values, off the event loop where they are large, and how the API page describes them."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema

from predictor.sidecar.problem import problem
from predictor.sidecar.schema import VARIANTS

# Parsing fewer bytes takes less time than the way to a thread and back.
_SMALL = 1 << 14
# One at a time: a parser keeps the interpreter to itself, and several would keep it from the event loop by turns.
_PARSER = ThreadPoolExecutor(1, thread_name_prefix="parse")
_REFERENCE = "#/components/schemas/{model}"

Body = TypeVar("Body", bound=BaseModel)


async def read_body(model: type[Body], content: bytes) -> Body | JSONResponse:
    """Return the body, or the response that says what is wrong with it: 400 for what is no JSON, 422 for the rest."""
    if len(content) <= _SMALL:
        return _read(model, content)
    return await asyncio.get_running_loop().run_in_executor(_PARSER, _read, model, content)


def _read(model: type[Body], content: bytes) -> Body | JSONResponse:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return problem(400, f"body: not UTF-8 at byte {error.start}")
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        return _refusal(error)


def _refusal(error: ValidationError) -> JSONResponse:
    problems = error.errors(include_url=False, include_input=False, include_context=True)
    first = problems[0]
    if first["type"] == "json_invalid":
        return problem(400, f"body: not JSON: {first.get('ctx', {}).get('error', '')}")
    place = [str(part) for part in first["loc"] if part not in VARIANTS]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return problem(422, f"{'.'.join(place) or 'body'}: {str(first['msg']).removeprefix('Value error, ')}{more}")


def described(model: type[BaseModel]) -> dict[str, Any]:
    """Return what a route adds to the API page about its body, which it reads itself."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, *models: type[BaseModel]) -> None:
    """Make the API page of `app` hold the schemas that `described` names."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, extra = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
            page.setdefault("components", {}).setdefault("schemas", {}).update(extra.get("$defs", {}))
            app.openapi_schema = page
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
