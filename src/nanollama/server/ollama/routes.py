"""The routes of Ollama's API: a call that passed the gate in, its reply out."""

import asyncio
from typing import TypeVar

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from nanollama.errors import ModelNotFoundError
from nanollama.server.gate import UPLOADS
from nanollama.server.generation import Generation
from nanollama.server.ollama.answers import OllamaJob, bare_line, not_found
from nanollama.server.ollama.creation import CreateRequest
from nanollama.server.ollama.describe import running_of, shown_model, tag_of
from nanollama.server.ollama.fields import (
    ChatRequest,
    CopyRequest,
    DeleteRequest,
    GenerateRequest,
    PullRequest,
    ShowRequest,
)
from nanollama.server.ollama.manage import Manager
from nanollama.server.problems import JSON, Problem
from nanollama.server.responses import NDJSON, JsonReply, answered
from nanollama.server.services import Services, read_body
from nanollama.server.source import Found
from nanollama.server.tables import Body, takes
from nanollama.store.plans import Hosts
from nanollama.store.store import Store

GREETING = "Ollama is running"
"""What clients look for to see that a server is there."""

NOT_HERE = {
    "embed": "embeddings can't be computed",
    "embeddings": "embeddings can't be computed",
    "push": "models can't be uploaded to a registry",
}
"""Routes of Ollama that are answered with 501 -> why."""

B = TypeVar("B", bound=Body)


def ollama_routes(services: Services, store: Store, hosts: Hosts) -> APIRouter:
    """All routes of Ollama's API."""
    routes = APIRouter()
    for add in (_add_answers, _add_models, _add_refusals):
        add(routes, services)
    _add_changes(routes, services, Manager(services, store, hosts))
    return routes


def _add_answers(routes: APIRouter, services: Services) -> None:
    @routes.post("/api/chat", openapi_extra=takes(ChatRequest))
    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        return await _answer(services, request, await _read(services, request, ChatRequest))

    @routes.post("/api/generate", openapi_extra=takes(GenerateRequest))
    async def generate(request: Request) -> Response:
        """Answer a prompt."""
        return await _answer(services, request, await _read(services, request, GenerateRequest))


def _add_models(routes: APIRouter, services: Services) -> None:
    @routes.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def greeting() -> Response:
        return PlainTextResponse(GREETING)

    @routes.api_route("/api/version", methods=["GET", "HEAD"], include_in_schema=False)
    async def version() -> Response:
        return JsonReply({"version": VERSION})

    @routes.api_route("/api/tags", methods=["GET", "HEAD"], include_in_schema=False)
    async def tags() -> Response:
        def work() -> list[JSON]:
            newest_first = sorted(services.pool.source.list(), key=lambda found: -found.modified)
            return [tag_of(found) for found in newest_first]

        return JsonReply({"models": await asyncio.to_thread(work)})

    @routes.get("/api/ps")
    async def running() -> Response:
        """The models in memory."""
        residents = services.pool.residents()
        return JsonReply(
            {"models": await asyncio.to_thread(lambda: [running_of(each) for each in residents])}
        )

    @routes.post("/api/show", openapi_extra=takes(ShowRequest))
    async def show(request: Request) -> Response:
        """Describe a model."""
        asked = await _read(services, request, ShowRequest)
        found = await _found(services, asked.model)
        return JsonReply(await asyncio.to_thread(shown_model, found, verbose=bool(asked.verbose)))


def _add_changes(routes: APIRouter, services: Services, manager: Manager) -> None:
    @routes.post("/api/pull", openapi_extra=takes(PullRequest))
    async def pull(request: Request) -> Response:
        """Fetch a model."""
        return await manager.pull(await _read(services, request, PullRequest))

    @routes.post("/api/create", openapi_extra=takes(CreateRequest))
    async def create(request: Request) -> Response:
        """Make a model from another one."""
        return await manager.create(await _read(services, request, CreateRequest))

    @routes.post("/api/copy", openapi_extra=takes(CopyRequest))
    async def copy(request: Request) -> Response:
        """Give a model a second name."""
        return await manager.copy(await _read(services, request, CopyRequest))

    @routes.delete("/api/delete", openapi_extra=takes(DeleteRequest))
    async def delete(request: Request) -> Response:
        """Forget a model."""
        return await manager.delete(await _read(services, request, DeleteRequest))

    @routes.head(UPLOADS + "{digest:path}", include_in_schema=False)
    async def has_blob(digest: str) -> Response:
        return await manager.has_blob(digest)

    @routes.post(UPLOADS + "{digest:path}", include_in_schema=False)
    async def take_blob(digest: str, request: Request) -> Response:
        return await manager.take_blob(digest, request.stream())


def _add_refusals(routes: APIRouter, services: Services) -> None:
    def add(name: str, why: str) -> None:
        @routes.post(f"/api/{name}", include_in_schema=False)
        async def refuse() -> Response:
            raise Problem(501, f"/api/{name} is not supported: {why}", "not_supported")

    for name, why in NOT_HERE.items():
        add(name, why)


VERSION = "0.14.0"
"""The version of Ollama whose API this is; clients compare it with the one they need."""


async def _answer(services: Services, request: Request, asked: ChatRequest | GenerateRequest) -> Response:
    if asked.only_loads:
        return JsonReply(await _loaded(services, asked))
    call = request.scope["state"]["call"]
    return await answered(Generation(services, call, OllamaJob(asked)), services.limits, NDJSON)


async def _loaded(services: Services, asked: ChatRequest | GenerateRequest) -> JSON:
    """Without anything to answer a request loads the model, or with ``keep_alive`` 0 unloads it."""
    keep, reason = asked.keep_alive, "load"
    try:
        if keep is not None and keep.seconds == 0:
            reason = "unload"
            await services.pool.unload(asked.model)
        else:
            async with services.pool.lease(asked.model, keep=keep, n_ctx=asked.settings.n_ctx):
                pass
    except ModelNotFoundError:
        raise not_found(asked.model) from None
    return {**bare_line(asked, "", done=True), "done_reason": reason}


async def _found(services: Services, name: str) -> Found:
    try:
        return await asyncio.to_thread(services.pool.source.find, name)
    except ModelNotFoundError:
        raise not_found(name) from None


async def _read(services: Services, request: Request, kind: type[B]) -> B:
    return await read_body(services, request.scope["state"]["call"], kind)
