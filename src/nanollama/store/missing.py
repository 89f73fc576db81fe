"""Errors for models that aren't there: a record or what was taken for a path in, a sentence of advice out."""

import os

from nanollama.errors import ModelNotFoundError, NanollamaError, UnsupportedError
from nanollama.formats.folders import not_a_checkpoint
from nanollama.store.files import expanded
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
