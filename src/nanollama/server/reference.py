"""The reference page of the HTTP API: the table of fields in, Markdown out, so that the two can't differ."""

import json
from collections.abc import Iterator
from typing import Any

from nanollama.server.fields import ChatRequest, CompletionRequest
from nanollama.server.messages import EMPTY_FIELDS, ROLES
from nanollama.server.settings import Limits
from nanollama.server.tables import Body, supported_rows

INTRODUCTION = """\
# The OpenAI-compatible API

This page is generated from the tables in `src/nanollama/server/fields.py` and `unsupported.py` by
`scripts/generate_reference.py`.

`nanollama serve [MODEL]` answers these requests on `http://127.0.0.1:8000`:

| route | what it does |
| --- | --- |
| `POST /v1/chat/completions` | answer a conversation |
| `POST /v1/completions` | continue a text |
| `GET /v1/models`, `GET /v1/models/{id}` | the models of this machine |
| `POST /tokenize` | text to token ids: `model`, `prompt`, `add_special_tokens`, `return_token_strs` |
| `POST /detokenize` | token ids to text: `model`, `tokens` |
| `GET /health` | `{"status": "ok"}`; 503 with `loading`, `failed` or `draining`; needs no key |
| `GET /version`, `GET /metrics`, `GET /openapi.json` | version, Prometheus counters, OpenAPI description |

A request can name any model of this machine, but nothing is downloaded for a request. A field is supported,
ignored because nothing depends on it, or refused by name with status 400. `null` means that a field was not
given. What is not given comes from the model's own settings, then from the defaults of `nanollama run`.
"""

ANSWERS = """\
## Answers

A stream sends the role in the first chunk, the `finish_reason` in the last one, then, if `stream_options`
asks for it, the usage in a chunk without choices, and `data: [DONE]`. Lines that begin with a colon keep the
connection alive while a model loads or a prompt runs; they hold the progress, such as `: prefill 512/2048`. A
failure after the first chunk is an event with `error`, and `data: [DONE]` follows it as well.

`usage.prompt_tokens_details.cached_tokens` counts the tokens of the prompt that were found in the cache. With
`context_policy: "drop_oldest"`, `dropped_messages` and `dropped_tokens` stand beside it.

Control tokens typed into a message stay ordinary text. In the `prompt` of `/v1/completions` they are
recognised: whoever writes a whole prompt also writes its control tokens.
"""

ERRORS = """\
## Errors

`{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`, with one of these:

| status | when | code |
| --- | --- | --- |
| 400 | a field is missing, unknown, wrong or can't be honoured | `invalid_http`, `invalid_json`, \
`missing_required_parameter`, `unknown_parameter`, `unsupported_parameter`, `invalid_value` |
| 400 | the prompt does not fit | `context_length_exceeded` |
| 401 | keys are set and none of them was sent | `invalid_api_key` |
| 403 | the Host or Origin header is not allowed | `host_not_allowed`, `origin_not_allowed` |
| 404, 405 | no such model, route or method | `model_not_found`, `not_found`, `method_not_allowed` |
| 408 | the request took too long to arrive | `request_timeout` |
| 413, 415 | the body is too large, or compressed | `request_too_large`, `unsupported_encoding` |
| 429 | the queue is full; `Retry-After` says when to come back | `queue_full` |
| 500 | the model failed on this request | `engine_error`, `internal_error` |
| 503 | the model can't be loaded, or the server is full or shutting down; with `Retry-After` | \
`model_load_failed`, `insufficient_memory`, `models_busy`, `too_many_connections`, `server_shutdown` |
"""


def reference() -> str:
    """The whole page."""
    return "\n".join(
        [
            INTRODUCTION,
            *_section("`POST /v1/chat/completions`", ChatRequest),
            *_messages(),
            *_section("`POST /v1/completions`", CompletionRequest),
            ANSWERS,
            ERRORS,
            *_limits(),
        ]
    )


def _section(title: str, request: type[Body]) -> Iterator[str]:
    yield f"## {title}\n"
    yield from supported_rows(request)
    yield "\n| refused | unless it is | because |\n| --- | --- | --- |"
    for name, refused in sorted(request.refused.items()):
        harmless = ", ".join(f"`{_json(value)}`" for value in refused.harmless)
        yield f"| `{name}` | {harmless} | {refused.why} |"
    yield "\n| ignored | because |\n| --- | --- |"
    yield from (f"| `{name}` | {why} |" for name, why in sorted(request.ignored.items()))
    yield ""


def _messages() -> Iterator[str]:
    yield "### Messages\n"
    yield f"`role` is {', '.join(f'`{role}`' for role in ROLES)}; `developer` means the same as `system`."
    yield "`content` is a text, or a list of parts of type `text`. `name` (letters, digits, `_`, `-`) goes to"
    yield "the model's chat template, which may use it. " + ", ".join(
        f"`{name}`" for name in sorted(EMPTY_FIELDS)
    )
    yield "are let through while they are null or empty, as clients send them back.\n"


def _limits() -> Iterator[str]:
    limits = Limits()
    yield "## Limits\n"
    yield "| limit | value |\n| --- | --- |"
    yield f"| request body | {limits.body_bytes >> 20} MiB |"
    yield f"| headers | {limits.header_bytes >> 10} KiB |"
    yield f"| time for the headers, for the body | {limits.header_s:g} s, {limits.body_s:g} s |"
    yield f"| connections | {limits.connections} |"
    yield f"| events that wait for a slow reader | {limits.queued_events}, for {limits.slow_reader_s:g} s |"
    yield f"| comments that keep a stream alive | every {limits.keepalive_s:g} s |"
    yield f"| time to finish after SIGTERM or Ctrl+C | {limits.drain_s:g} s |"


def _json(value: Any) -> str:
    return json.dumps(value)
