"""The command ``show``: the name or path of a model in, what is known about it on stdout out."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanollama.cli.parsers import MODEL_HELP, add_command
from nanollama.errors import UsageError
from nanollama.store.recipe import Recipe, recipe_to_json

if TYPE_CHECKING:
    from nanollama.cli.parsers import Subparsers
    from nanollama.formats.details import Details
    from nanollama.store.store import Located

_SHOWN_LINES = 8
"""Lines of a long text in the overview; its own option prints all of it."""

_SHOWN_CHARS = 100
"""Characters of a long value in the metadata; ``--json`` prints all of it."""


def add_show_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama show`` to the command line."""
    parser = add_command(subparsers, "show", show_command, "show what is known about a model")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parts = parser.add_mutually_exclusive_group()
    for part, what in (
        ("tensors", "a table of all tensors"),
        ("modelfile", "a Modelfile that creates it again"),
        ("template", "the chat template"),
        ("parameters", "the parameters that its recipe sets"),
        ("system", "the system prompt"),
        ("license", "the licence"),
        ("json", "everything as one JSON object"),
    ):
        parts.add_argument(f"--{part}", action="store_const", const=part, dest="part", help=f"print {what}")
    parts.add_argument(
        "-v",
        "--verbose",
        action="store_const",
        const="verbose",
        dest="part",
        help="the overview, the metadata and the tensors",
    )


def show_command(args: argparse.Namespace) -> int:
    """Prints one part, or an overview."""
    from nanollama.cli.models import open_store
    from nanollama.formats.details import read_details

    located = open_store().locate(args.model, fetch=False)
    if args.part == "modelfile":
        print(_modelfile(located), end="")
        return 0
    if args.part in ("parameters", "system"):
        print(_PARTS[args.part](located.recipe, None))
        return 0
    details = read_details(located.path)
    if args.part == "tensors":
        print(_tensor_table(details))
    elif args.part == "verbose":
        metadata = "\n".join(_metadata_lines(details.metadata))
        print(
            overview(located.recipe, details), f"  Metadata\n{metadata}", _tensor_table(details), sep="\n\n"
        )
    elif args.part == "json":
        print(json.dumps(_as_json(located, details), indent=2))
    elif args.part is not None:
        print(_PARTS[args.part](located.recipe, details))
    else:
        print(overview(located.recipe, details))
    return 0


def overview(recipe: Recipe, details: "Details") -> str:
    """The details of a model, then what its recipe adds, each under a heading."""
    rows = [
        ("architecture", details.architecture),
        ("parameters", count_text(details.parameters)),
        ("context length", details.context_length),
        ("embedding length", details.embedding_length),
        ("quantization", details.quantization),
    ]
    sections = [("Model", [f"{name:<20}{value}" for name, value in rows if value is not None])]
    for heading, part in (
        ("Parameters", "parameters"),
        ("System", "system"),
        ("Template", "template"),
        ("License", "license"),
    ):
        if text := _PARTS[part](recipe, details):
            sections.append((heading, _shortened(text, part)))
    return "\n\n".join("\n".join([f"  {head}", *(f"    {line}" for line in body)]) for head, body in sections)


def parameters_text(recipe: Recipe) -> str:
    """One ``name value`` a line, as Ollama shows them; a parameter that repeats has a line each time."""
    lines = []
    for name, value in recipe.parameters.items():
        for each in value if isinstance(value, tuple) else (value,):
            text = json.dumps(each, ensure_ascii=False) if isinstance(each, str | bool) else str(each)
            lines.append(f"{name:<20}{text}")
    return "\n".join(lines)


def count_text(count: int) -> str:
    """``134.5M``, ``1.2B``: a number of parameters."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return str(count)


def _template(recipe: Recipe, details: "Details | None") -> str:
    return recipe.template if recipe.template is not None else (details and details.template) or ""


def _license(recipe: Recipe, details: "Details | None") -> str:
    return "\n\n".join(recipe.licences) or (details and details.licence) or ""


_PARTS: dict[str, Callable[[Recipe, "Details | None"], str]] = {
    "template": _template,
    "parameters": lambda recipe, _: parameters_text(recipe),
    "system": lambda recipe, _: recipe.system or "",
    "license": _license,
}


def _shortened(text: str, part: str) -> list[str]:
    lines = text.strip().splitlines()
    if len(lines) <= _SHOWN_LINES:
        return lines
    return [*lines[:_SHOWN_LINES], f"... ({len(lines)} lines; --{part} prints all)"]


def _modelfile(located: "Located") -> str:
    from nanollama.store.modelfile import modelfile_of

    if located.record is None:
        raise UsageError("a path has no recipe: give a name, or register the file with nanollama import PATH")
    return modelfile_of(located.record)


def _metadata_lines(metadata: Mapping[str, Any]) -> Iterator[str]:
    """One ``name value`` a line; a value that needs more than a line is given in JSON, and in part."""
    width = max(map(len, metadata), default=0) + 4
    for name, value in metadata.items():
        if value is None:
            text = "(a list)"
        elif isinstance(value, str) and value.isprintable():
            text = value
        else:
            text = json.dumps(value, ensure_ascii=False)
        yield f"    {name:<{width}}{text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + '...'}"


def _tensor_table(details: "Details") -> str:
    from nanollama.cli.terminal import table

    rows: list[tuple[str, ...]] = [("NAME", "TYPE", "SHAPE")]
    rows += [(each.name, each.type, " x ".join(map(str, each.shape))) for each in details.tensors]
    return table(rows)


def _as_json(located: "Located", details: "Details") -> dict[str, Any]:
    record = located.record
    return {
        "name": str(located.name) if located.name else None,
        "path": str(Path(located.path)),
        "format": details.format,
        "architecture": details.architecture,
        "parameters": details.parameters,
        "context_length": details.context_length,
        "embedding_length": details.embedding_length,
        "quantization": details.quantization,
        "size": record.size if record else None,
        "digest": record.digest.text if record and record.digest else None,
        "source": record.source if record else None,
        "parent": record.parent if record else None,
        "template": _template(located.recipe, details),
        "license": _license(located.recipe, details),
        "recipe": recipe_to_json(located.recipe),
        "metadata": details.metadata,
        "tensors": [{"name": t.name, "type": t.type, "shape": t.shape} for t in details.tensors],
    }
