"""The application: the parts of a server in, an ASGI application out, with the gate around all routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from nanollama.errors import NanollamaError
from nanollama.server.gate import Gate
from nanollama.server.ollama.routes import ollama_routes
from nanollama.server.openai import openai_routes
from nanollama.server.problems import Problem, problem_of, refusal
from nanollama.server.responses import JsonReply
from nanollama.server.services import Services
from nanollama.store.plans import HUB_ONLY, Hosts
from nanollama.store.store import Store


def build_routes(services: Services, store: Store, hosts: Hosts) -> FastAPI:
    """All routes, without the gate."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        services.pool.preload()
        yield
        await services.pool.close()
        for threads in (services.renderers, services.workers):
            threads.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="nanollama",
        version=services.version,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(openai_routes(services))
    app.include_router(ollama_routes(services, store, hosts))
    for kind in (Problem, NanollamaError, HTTPException, Exception):
        app.add_exception_handler(kind, _failed)

    @app.get("/health")
    async def health() -> Response:
        """Whether requests can be answered."""
        state = "draining" if services.admission.draining else services.pool.state()
        return JsonReply({"status": state}, status_code=200 if state == "ok" else 503)

    @app.get("/version")
    async def version() -> Response:
        """The version of this server."""
        return JsonReply({"version": services.version})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters and gauges in Prometheus' text form."""
        return PlainTextResponse(services.metrics.text(), media_type="text/plain; version=1.0.0")

    return app


def build_app(services: Services, store: Store | None = None, hosts: Hosts = HUB_ONLY) -> ASGIApp:
    """The whole application. Requests change the models of ``store``, and pull from ``hosts``."""
    return Gate(build_routes(services, store or Store(), hosts), services)


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        asked = f"{request.method[:16]} {request.url.path[:100]}"
        problem = Problem(
            error.status_code, f"This server has nothing at {asked}; /openapi.json lists what it has.", code
        )
        status, body = refusal(problem, request.url.path)
        return JsonReply(body, status_code=status, headers=error.headers)
    problem = problem_of(error)
    status, body = refusal(problem, request.url.path)
    return JsonReply(body, status_code=status, headers=problem.headers())
