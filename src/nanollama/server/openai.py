"""The routes of OpenAI's API and what stands beside them: a call that passed the gate in, its reply out."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from nanollama.server.body import parse_object
from nanollama.server.fields import ChatRequest, CompletionRequest, TokenId, brief
from nanollama.server.generation import Generation
from nanollama.server.problems import JSON, invalid
from nanollama.server.responses import EventStream, JsonReply
from nanollama.server.services import Call, Services
from nanollama.server.source import Found

if TYPE_CHECKING:
    from nanollama.llm import LLM

MAX_TEXT_TOKENS = 1 << 20
SMALL_BODY_BYTES = 64 << 10
"""Up to this size a body is parsed at once; a larger one in a thread, so that others don't wait for it."""

T = TypeVar("T")
Small = TypeVar("Small", bound=BaseModel)


class TokenizeRequest(BaseModel):
    """The body of ``POST /tokenize``."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    model: Annotated[str, Field(min_length=1, max_length=512)]
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(BaseModel):
    """The body of ``POST /detokenize``."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    model: Annotated[str, Field(min_length=1, max_length=512)]
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TEXT_TOKENS)]


def openai_routes(services: Services) -> APIRouter:
    """All routes that use models."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", openapi_extra=_takes(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await _generate(services, request, ChatRequest)

    @routes.post("/v1/completions", openapi_extra=_takes(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Continue a text."""
        return await _generate(services, request, CompletionRequest)

    @routes.get("/v1/models")
    async def models() -> Response:
        """List the models of this machine."""
        found = await asyncio.to_thread(services.pool.source.list)
        return JsonReply({"object": "list", "data": [_described(each) for each in found]})

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """Describe one model."""
        return JsonReply(_described(await asyncio.to_thread(services.pool.source.find, name)))

    @routes.post("/tokenize", openapi_extra=_takes(TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        """Turn a text into token ids."""
        asked = _read(TokenizeRequest, request)

        def work(llm: "LLM") -> JSON:
            ids = llm.tokenizer.encode(asked.prompt, add_special=asked.add_special_tokens, parse_special=True)
            reply: JSON = {"count": len(ids), "max_model_len": llm.n_ctx, "tokens": ids}
            if asked.return_token_strs:
                pieces = (llm.tokenizer.token_bytes(token, skip_special=False) for token in ids)
                reply["token_strs"] = [piece.decode("utf-8", "replace") for piece in pieces]
            return reply

        return JsonReply(await _with_model(services, asked.model, work))

    @routes.post("/detokenize", openapi_extra=_takes(DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        """Turn token ids into a text."""
        asked = _read(DetokenizeRequest, request)

        def work(llm: "LLM") -> JSON:
            return {"prompt": llm.tokenizer.decode(asked.tokens, skip_special=False, strip_prefix=True)}

        return JsonReply(await _with_model(services, asked.model, work))

    return routes


async def _generate(
    services: Services, request: Request, kind: type[ChatRequest] | type[CompletionRequest]
) -> Response:
    call: Call = request.scope["state"]["call"]
    if len(call.body) < SMALL_BODY_BYTES:
        asked = kind.read(parse_object(call.body))
    else:
        asked = await asyncio.wrap_future(
            services.renderers.submit(lambda: kind.read(parse_object(call.body)))
        )
    generation = Generation(services, call, asked)
    if generation.streams:
        return EventStream(generation, services.limits)
    try:
        return JsonReply(await generation.whole())
    finally:
        await generation.close()


async def _with_model(services: Services, name: str, work: Callable[["LLM"], T]) -> T:
    """The result of ``work``, done in a thread while the model is held."""
    async with services.pool.lease(name) as llm:
        return await asyncio.wrap_future(services.renderers.submit(work, llm))


def _read(kind: type[Small], request: Request) -> Small:
    given = parse_object(request.scope["state"]["call"].body)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        name = str(error.errors(include_url=False, include_input=False, include_context=False)[0]["loc"][0])
        if name not in kind.model_fields:
            raise invalid(f"Unknown parameter: {brief(name)}.", name[:60], "unknown_parameter") from None
        if name not in given:
            raise invalid(f"{name} is missing.", name, "missing_required_parameter") from None
        raise invalid(
            f"{name} is {brief(given[name])}, which is not allowed.", name, "invalid_value"
        ) from None


def _described(found: Found) -> JSON:
    return {"id": found.id, "object": "model", "created": int(found.modified), "owned_by": "nanollama"}


def _takes(kind: type[BaseModel]) -> dict[str, Any]:
    """How the OpenAPI page describes a body that the gate reads and ``kind`` checks."""
    schema = kind.model_json_schema()
    shared = schema.pop("$defs", {})
    content = {"application/json": {"schema": _resolved(schema, shared)}}
    return {"requestBody": {"required": True, "content": content}}


def _resolved(schema: Any, shared: JSON) -> Any:
    """A schema with its references replaced by what they refer to; none refers to itself."""
    if isinstance(schema, list):
        return [_resolved(each, shared) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolved(shared[schema["$ref"].removeprefix("#/$defs/")], shared)
    return {name: _resolved(value, shared) for name, value in schema.items()}
