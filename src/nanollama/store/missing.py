"""Errors for models that can't be had: a record, a name or what was taken for a path in, advice out."""

import os
from collections.abc import Iterable

from nanollama.errors import ModelNotFoundError, NanollamaError, UnsupportedError
from nanollama.formats.folders import not_a_checkpoint
from nanollama.store.catalogue import ALIASES, Entry
from nanollama.store.files import expanded
from nanollama.store.names import DEFAULT_TAG, ModelName
from nanollama.store.registry import Record


def incomplete(record: Record) -> ModelNotFoundError:
    """The error for a model whose files are not all there in their sizes."""
    return ModelNotFoundError(
        f"a file of {record.name} is missing or was changed: 'nanollama verify --repair {record.name}' "
        "fetches it again, or says why it can't"
    )


def not_a_model_file(text: str) -> NanollamaError:
    """The error for a path that is no file and no checkpoint folder. Nothing is opened."""
    path = expanded(text)
    if os.path.isdir(path):
        return not_a_checkpoint(path)
    if os.path.exists(path):
        return UnsupportedError(f"{text!r} is not a regular file: give the path of a .gguf file")
    return ModelNotFoundError(
        f"there is no file {text!r}: check the path, or see what 'nanollama list' shows"
    )


def embeds_only(entry: Entry) -> UnsupportedError:
    """The error for a model of the catalogue that computes embeddings. Nothing is fetched."""
    return UnsupportedError(
        f"{entry.name} computes embeddings, which nanollama can't do, so it is not fetched: choose a model "
        "that generates text ('nanollama search' lists them)"
    )


def unknown(
    text: str, here: Iterable[ModelName], catalogue: tuple[Entry, ...], also: str | None
) -> ModelNotFoundError:
    """The error for a name that means nothing, with the names that look like it: see ``Store.unknown``."""
    from difflib import get_close_matches

    text = text.removesuffix(f":{DEFAULT_TAG}")
    known = {str(name).removesuffix(f":{DEFAULT_TAG}") for name in here}
    if also is None:
        what, hint = "on this machine", "'nanollama list' shows what is there"
    else:
        what, hint = f"({also} works too)", "'nanollama search' lists what can be fetched"
        # A name without a tag is the answer to one, where it stands for something.
        without_tag = {alias for alias in ALIASES if ":" not in alias}
        known |= {str(entry.name) for entry in catalogue} if ":" in text else without_tag
    if close := get_close_matches(text.lower(), sorted(known), n=3, cutoff=0.6):
        hint = f"did you mean {' or '.join(close)}?"
    return ModelNotFoundError(f"there is no model {text!r} {what}: {hint}")
