"""Models from recipes: the place of a base and a recipe in, the record that has both out.

No weights are copied, unless they are quantized: then the new file belongs to the record.
"""

import os
from itertools import count
from pathlib import Path

from nanollama.errors import UnsupportedError, UsageError
from nanollama.quant.plan import FILE_TYPES
from nanollama.store.files import sha256_of
from nanollama.store.imports import is_checkpoint
from nanollama.store.names import ModelName
from nanollama.store.recipe import Recipe, over
from nanollama.store.registry import Record, RecordFile
from nanollama.store.store import Located, Store
from nanollama.store.transfer import Progress, Silent

SAME_TYPES = {"Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K"}
"""Names of llama.cpp for mixtures -> the type that most of their weights have, which all matrices get."""


def create_model(
    store: Store,
    name: ModelName,
    located: Located,
    recipe: Recipe,
    *,
    parent: str,
    quantize: str | None = None,
    progress: Progress | None = None,
) -> Record:
    """Register ``name`` as the weights of ``located`` with ``recipe`` on top of the one that they have.

    ``parent`` is what the base is called, ``quantize`` one of ``FILE_TYPES`` or ``SAME_TYPES`` in any case.

    Raises:
        NanollamaError: a template does not compile, weights can't be quantized, the disk is full.
    """
    combined = over(recipe, located.recipe)
    if combined.template is not None:
        from nanollama.text.template import ChatTemplate

        ChatTemplate(combined.template)
    if quantize is None:
        return store.create(name, located, combined, parent)
    return _quantized(store, name, located, combined, parent, quantize, progress or Silent())


def base_of(text: str, folder: Path) -> str:
    """What FROM means in a Modelfile in ``folder``: the path of something that exists, or else a name.

    Raises:
        UsageError: it can only be a path, and there is nothing.
    """
    path = folder / os.path.expanduser(text)
    looks_like_path = "/" in text or os.sep in text or text.lower().endswith(".gguf")
    if os.path.isfile(path) or is_checkpoint(path) or (looks_like_path and os.path.exists(path)):
        return os.path.abspath(path)
    if text.startswith(("/", ".", "~")):
        raise UsageError(f"FROM is {text!r}, and there is no {path}: expected a file, a folder or a name")
    return text


def adapters_of(recipe: Recipe, folder: Path) -> tuple[str, ...]:
    """The absolute paths of the adapters that a Modelfile in ``folder`` names. Raises ``UsageError``."""
    paths = tuple(os.path.abspath(folder / os.path.expanduser(text)) for text in recipe.adapters)
    for path in paths:
        if not os.path.exists(path):
            raise UsageError(f"ADAPTER is {path}, and there is no such file or folder: check the path")
    return paths


def quant_type(text: str) -> str:
    """The one of ``FILE_TYPES`` that ``text`` means. Raises ``UsageError``."""
    wanted = SAME_TYPES.get(text.upper(), text.upper())
    if wanted not in FILE_TYPES:
        known = ", ".join((*FILE_TYPES, *SAME_TYPES))
        raise UsageError(f"{text!r:.40} is no type to quantize to; expected one of {known}")
    return wanted


def _quantized(
    store: Store,
    name: ModelName,
    located: Located,
    recipe: Recipe,
    parent: str,
    asked: str,
    progress: Progress,
) -> Record:
    """Write the weights in the type ``asked`` for into the folder of ``name``, and register them."""
    from nanollama.formats.gguf import GGUFFile
    from nanollama.quant.notices import check_room, loss_notice, misfit_notice
    from nanollama.quant.requantize import planned_bytes, requantize_file

    wanted = quant_type(asked)
    if wanted != asked.upper():
        progress.notice(
            f"{asked} is written as {wanted}: all its matrices get that type, and none a larger one"
        )
    if located.path.is_dir():
        raise UnsupportedError(
            f"{located.path} is a folder of safetensors, and only GGUF files can be quantized when a model "
            "is created: leave --quantize out, and give it to nanollama run instead"
        )
    destination = _free_path(store.folder(name), f"{name.model}-{wanted}")
    with GGUFFile(located.path) as file:
        if loss := loss_notice(file):
            progress.notice(loss)
        total = planned_bytes(file, wanted)
        destination.parent.mkdir(parents=True, exist_ok=True)
        check_room(destination, total)
        progress.begin(destination.name, total)
        try:
            outcome = requantize_file(file, destination, wanted, on_bytes=progress.update)
        finally:
            progress.end()
    if outcome.misfits:
        progress.notice(misfit_notice(outcome.misfits, wanted))
    digest, status = sha256_of(destination), destination.stat()
    return store.add(
        Record(
            name=name,
            format="gguf",
            path=destination,
            size=status.st_size,
            digest=digest,
            modified=round(status.st_mtime, 6),
            owned=True,
            source=f"{parent}, quantized to {wanted}",
            recipe=recipe,
            parent=parent,
            files=(RecordFile(destination.name, status.st_size, digest),),
        )
    )


def _free_path(folder: Path, stem: str) -> Path:
    """The path of a file that does not exist: another model may use one of that name."""
    for number in count(1):
        path = folder / (f"{stem}.gguf" if number == 1 else f"{stem}-{number}.gguf")
        if not path.exists():
            return path
    raise AssertionError  # the count has no end
