"""Models from recipes: the place of a base and a recipe in, the record that has both out.

No weights are copied, unless they are quantized: then the new file belongs to the record.
"""

import os
from itertools import count
from pathlib import Path

from nanollama.errors import NanollamaError, UsageError
from nanollama.quant.plan import file_type
from nanollama.store.files import sha256_of, unwound
from nanollama.store.imports import is_checkpoint
from nanollama.store.names import ModelName
from nanollama.store.recipe import Recipe, over
from nanollama.store.registry import Record, RecordFile
from nanollama.store.store import Located, Store
from nanollama.store.transfer import Progress, Silent


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

    ``parent`` is what the base is called, ``quantize`` what :func:`file_type` takes.

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
        return str(unwound(path))
    if text.startswith(("/", ".", "~")):
        raise UsageError(f"FROM is {text!r}, and there is no {path}: expected a file, a folder or a name")
    return text


def adapters_of(recipe: Recipe, folder: Path) -> tuple[str, ...]:
    """The absolute paths of the adapters that a Modelfile in ``folder`` names. Raises ``UsageError``."""
    paths = tuple(str(unwound(folder / os.path.expanduser(text))) for text in recipe.adapters)
    for path in paths:
        if not os.path.exists(path):
            raise UsageError(f"ADAPTER is {path}, and there is no such file or folder: check the path")
    return paths


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
    from nanollama.model.gguf_export import opened_source
    from nanollama.quant.notices import check_room, loss_notice, misfit_notice
    from nanollama.quant.requantize import planned_bytes, requantize

    wanted = file_type(asked)
    destination = _free_path(store.folder(name), f"{name.model}-{wanted}")
    with opened_source(located.path) as source:
        if loss := loss_notice(source):
            progress.notice(loss)
        total = planned_bytes(source, wanted)
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NanollamaError(
                f"{destination.parent} could not be made ({error.strerror or error}): check its permissions"
            ) from error
        check_room(destination, total)
        progress.begin(destination.name, total)
        try:
            outcome = requantize(source, destination, wanted, on_bytes=progress.update)
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
        if not os.path.lexists(path):
            return path
    raise AssertionError  # the count has no end
