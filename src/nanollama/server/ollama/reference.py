"""The reference page of Ollama's API: the tables of fields in, Markdown out, so that the two can't differ."""

import json
from collections.abc import Iterator, Mapping

from nanollama.server.environment import ELSEWHERE, VARIABLES, WITHOUT_EFFECT
from nanollama.server.ollama.creation import CreateRequest
from nanollama.server.ollama.fields import (
    Asking,
    ChatRequest,
    CopyRequest,
    DeleteRequest,
    GenerateRequest,
    PullRequest,
    ShowRequest,
)
from nanollama.server.ollama.messages import EMPTY_FIELDS, ROLES
from nanollama.server.ollama.options import (
    IGNORED_OPTIONS,
    OLLAMA_DEFAULTS,
    REFUSED_OPTIONS,
    SUPPORTED_OPTIONS,
)
from nanollama.server.ollama.routes import NOT_HERE, VERSION
from nanollama.server.problems import OLLAMA_BUSY
from nanollama.server.tables import Body, supported_rows
from nanollama.server.unsupported import Refused
from nanollama.store import parameters

INTRODUCTION = f"""\
# The Ollama-compatible API

This page is generated from the tables in `src/nanollama/server/ollama/` by `scripts/generate_reference.py`.

`nanollama serve [MODEL]` answers these requests beside those of [OpenAI's API](openai.md), on the same port
and behind the same keys, limits and checks:

| route | what it does |
| --- | --- |
| `POST /api/chat`, `POST /api/generate` | answer a conversation, or a prompt |
| `GET /api/tags`, `POST /api/show` | the models of this machine, and one of them |
| `GET /api/ps` | the models in memory, and until when |
| `POST /api/pull` | fetch a model of the catalogue or of hf.co; `--allow-pull` allows other hosts |
| `POST /api/create` | make a model from another one or from an uploaded file |
| `POST /api/copy`, `DELETE /api/delete` | give a model a second name, forget a name |
| `HEAD` and `POST /api/blobs/sha256:...` | upload a `.gguf` file, from which a model can be made |
| `GET /api/version` | `{VERSION}`, the version of Ollama whose API this is |
| `GET /` | `Ollama is running` |
"""

ANSWERS = f"""\
## Answers

Unless `stream` is false, an answer comes as lines of JSON (`application/x-ndjson`). Each has `model`,
`created_at`, `done`, and `message` with `role` and `content` (chat) or `response` (generate). The last one
has `done: true`, `done_reason` (`stop`, `length`, `load`, `unload`), `total_duration`, `load_duration`,
`prompt_eval_duration` and `eval_duration` in nanoseconds, `prompt_eval_count` and `eval_count` in tokens, and
`context` (generate): the tokens of prompt and answer, from which the next request can go on.

A conversation that doesn't fit loses its oldest turns, as in Ollama; but then the last line says how much was
left out, in `dropped_messages` and `dropped_tokens`. With `truncate: false` such a request is refused.

Without `messages` or `prompt` the model is only loaded, and with `keep_alive: 0` it is unloaded as soon as
nobody uses it. `options.num_ctx` up to the window that the model was loaded with uses a part of that window;
for more the model is loaded again when nobody uses it; what the model can't have is refused.

An error is `{{"error": "..."}}` with its status, or a last line of that form once an answer has begun. A full
queue is status 503, `{OLLAMA_BUSY}`, with `Retry-After`.
"""


def reference() -> str:
    """The whole page."""
    return "\n".join(
        [
            INTRODUCTION,
            *_refused_routes(),
            *_section("`POST /api/chat`", ChatRequest),
            *_messages(),
            *_section("`POST /api/generate`", GenerateRequest),
            *_options(),
            ANSWERS,
            *_section("`POST /api/show`", ShowRequest),
            *_section("`POST /api/pull`", PullRequest),
            *_section("`POST /api/create`", CreateRequest),
            *_section("`POST /api/copy`", CopyRequest),
            *_section("`DELETE /api/delete`", DeleteRequest),
            *_variables(),
        ]
    )


def _refused_routes() -> Iterator[str]:
    yield "| answered with 501 | because |\n| --- | --- |"
    yield from (f"| `POST /api/{name}` | {why} |" for name, why in NOT_HERE.items())
    yield ""


def _section(title: str, request: type[Body]) -> Iterator[str]:
    yield f"## {title}\n"
    yield from supported_rows(request)
    refused = dict(request.refused)
    if issubclass(request, Asking):
        for name, lacks in request.lacking.items():
            refused[name] = Refused(f'no model here has the capability "{lacks.capability}"', lacks.harmless)
    yield from _refused(refused)
    yield from _ignored(request.ignored)
    yield ""


def _refused(table: Mapping[str, Refused]) -> Iterator[str]:
    if table:
        yield "\n| refused | unless it is | because |\n| --- | --- | --- |"
        for name, refused in sorted(table.items()):
            harmless = ", ".join(f"`{json.dumps(value)}`" for value in refused.harmless)
            yield f"| `{name}` | {harmless} | {refused.why} |"


def _ignored(table: Mapping[str, str]) -> Iterator[str]:
    if table:
        yield "\n| ignored | because |\n| --- | --- |"
        yield from (f"| `{name}` | {why} |" for name, why in sorted(table.items()))


def _messages() -> Iterator[str]:
    yield "### Messages\n"
    yield f"`role` is {', '.join(f'`{role}`' for role in ROLES)}, and `content` a text."
    yield "Other fields are let through while they are null or empty:\n"
    yield "| refused | because |\n| --- | --- |"
    yield from (f"| `{name}` | {why} |" for name, why in sorted(EMPTY_FIELDS.items()))
    yield ""


def _options() -> Iterator[str]:
    yield "## Options\n"
    yield "What neither the request nor the model states has Ollama's default. An option that is in no table"
    yield "is refused by name.\n"
    yield "| supported | takes | default |\n| --- | --- | --- |"
    for name in SUPPORTED_OPTIONS:
        row = parameters.PARAMETERS[name]
        default = OLLAMA_DEFAULTS.get(row.setting or "", row.default)
        shown = "" if default is None or default == () else f"`{default}`"
        yield f"| `{name}` | {_expected_option(name)} | {shown} |"
    yield from _refused(REFUSED_OPTIONS)
    yield from _ignored(IGNORED_OPTIONS)
    yield ""


def _expected_option(name: str) -> str:
    if name == "stop":
        return f"a text, or up to {parameters.MAX_STOPS} of them"
    return parameters.expected(parameters.PARAMETERS[name])


def _variables() -> Iterator[str]:
    yield "## Variables\n"
    yield "A flag of `nanollama serve` comes before its variable, and ours before Ollama's.\n"
    yield "| variable | Ollama's | sets | takes |\n| --- | --- | --- | --- |"
    for each in VARIABLES:
        yield f"| `{each.name}` | `{each.ollama}` | `{each.sets}` | {each.form} |"
    yield ""
    yield "`OLLAMA_HOST` without a port means port 11434, ours without one port 8000. `run --server`, `ps`"
    yield "and `stop` ask the server that these two name.\n"
    yield "| other variables | are for |\n| --- | --- |"
    yield from (f"| `{name}` | {what} |" for name, what in ELSEWHERE.items())
    yield ""
    yield "| no effect | because |\n| --- | --- |"
    yield from (f"| `{name}` | {why} |" for name, why in WITHOUT_EFFECT.items())
