"""Failures on their way to a client: an exception in, a status and the error object of its API out.

No message holds a traceback, an address in memory or a folder of this machine.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from nanollama.errors import ContextOverflowError, ModelNotFoundError, NanollamaError

JSON = dict[str, Any]

OLLAMA_BUSY = "server busy, please try again.  maximum pending requests exceeded"


@dataclass(eq=False)  # not frozen: Python itself writes an exception's traceback
class Problem(Exception):
    """A refusal. ``message`` is one sentence, ``param`` the wrong field, ``retry_after`` in seconds."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None

    def __str__(self) -> str:
        return self.message

    def body(self) -> JSON:
        """The object that OpenAI's clients turn into their exception."""
        return {
            "error": {
                "message": self.message,
                "type": _type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        return headers


def ollama_body(problem: Problem) -> JSON:
    """The object that Ollama's clients turn into their exception."""
    return {"error": problem.message}


def speaks_ollama(path: str) -> bool:
    """Whether who calls ``path`` reads Ollama's errors."""
    return path == "/" or path.startswith("/api/")


def refusal(problem: Problem, path: str) -> tuple[int, JSON]:
    """Status and body of a refusal, in the form of the API that ``path`` belongs to."""
    if not speaks_ollama(path):
        return problem.status, problem.body()
    if problem.code == "queue_full":  # Ollama's status and text, which its clients know
        return HTTPStatus.SERVICE_UNAVAILABLE, {"error": OLLAMA_BUSY}
    return problem.status, ollama_body(problem)


def invalid(message: str, param: str | None = None, code: str | None = None) -> Problem:
    """A request that has to be changed before it can be answered."""
    return Problem(400, message, code, param)


def unavailable(message: str, code: str, retry_after: int) -> Problem:
    """A request that is right but can't be answered at present."""
    return Problem(503, message, code, retry_after=retry_after)


def shutting_down() -> Problem:
    return unavailable("The server is shutting down; try again later.", "server_shutdown", 10)


def problem_of(error: Exception) -> Problem:
    """What a client is told of ``error``; what we did not foresee becomes a 500 that says nothing of it."""
    if isinstance(error, Problem):
        return error
    if not isinstance(error, NanollamaError):
        return Problem(500, "The server failed to answer this request.", "internal_error")
    status = error.http_status
    if isinstance(error, ContextOverflowError):
        return Problem(status, str(error), "context_length_exceeded")
    if isinstance(error, ModelNotFoundError):
        return Problem(status, str(error), "model_not_found", "model")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Problem(status, str(error), "queue_full", retry_after=1)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Problem(status, str(error))
    if status in (HTTPStatus.BAD_GATEWAY, HTTPStatus.INSUFFICIENT_STORAGE):
        return Problem(status, str(error))
    return Problem(500, str(error), "engine_error")


def _type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return "service_unavailable_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
