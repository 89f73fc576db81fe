"""The routes of OpenAI's API and what stands beside them: a call that passed the gate in, its reply out."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from nanollama.server.answering import OpenAIJob
from nanollama.server.fields import ChatRequest, CompletionRequest, TokenId
from nanollama.server.generation import Generation
from nanollama.server.problems import JSON
from nanollama.server.responses import SSE, JsonReply, answered
from nanollama.server.services import Call, Services, read_body
from nanollama.server.source import Found
from nanollama.server.tables import Body, Expects, takes

if TYPE_CHECKING:
    from nanollama.llm import LLM

MAX_TEXT_TOKENS = 1 << 20

T = TypeVar("T")


class TokenizeRequest(Body):
    """The body of ``POST /tokenize``."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """The body of ``POST /detokenize``."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TEXT_TOKENS), Expects("a list of token ids")]


def openai_routes(services: Services) -> APIRouter:
    """All routes that use models."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", openapi_extra=takes(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await _generate(services, request, ChatRequest)

    @routes.post("/v1/completions", openapi_extra=takes(CompletionRequest))
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

    @routes.post("/tokenize", openapi_extra=takes(TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        """Turn a text into token ids."""
        asked = await read_body(services, request.scope["state"]["call"], TokenizeRequest)

        def work(llm: "LLM") -> JSON:
            ids = llm.tokenizer.encode(asked.prompt, add_special=asked.add_special_tokens, parse_special=True)
            reply: JSON = {"count": len(ids), "max_model_len": llm.n_ctx, "tokens": ids}
            if asked.return_token_strs:
                pieces = (llm.tokenizer.token_bytes(token, skip_special=False) for token in ids)
                reply["token_strs"] = [piece.decode("utf-8", "replace") for piece in pieces]
            return reply

        return JsonReply(await _with_model(services, asked.model, work))

    @routes.post("/detokenize", openapi_extra=takes(DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        """Turn token ids into a text."""
        asked = await read_body(services, request.scope["state"]["call"], DetokenizeRequest)

        def work(llm: "LLM") -> JSON:
            return {"prompt": llm.tokenizer.decode(asked.tokens, skip_special=False, strip_prefix=True)}

        return JsonReply(await _with_model(services, asked.model, work))

    return routes


async def _generate(
    services: Services, request: Request, kind: type[ChatRequest] | type[CompletionRequest]
) -> Response:
    call: Call = request.scope["state"]["call"]
    asked = await read_body(services, call, kind)
    return await answered(Generation(services, call, OpenAIJob(asked)), services.limits, SSE)


async def _with_model(services: Services, name: str, work: Callable[["LLM"], T]) -> T:
    """The result of ``work``, done in a thread while the model is held."""
    async with services.pool.lease(name) as llm:
        return await asyncio.wrap_future(services.renderers.submit(work, llm))


def _described(found: Found) -> JSON:
    return {"id": found.id, "object": "model", "created": int(found.modified), "owned_by": "nanollama"}
