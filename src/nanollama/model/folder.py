"""Opening a Hugging Face checkpoint folder: a path in, a ``Checkpoint`` out.

Only data is read: config.json, safetensors files and what lies beside a tokenizer. Code in the folder is
never run and pickled weights are never loaded. All files are looked for in the folder itself; links may lead
elsewhere, as in the Hugging Face cache.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from nanollama.errors import FormatError, ModelNotFoundError
from nanollama.formats.folders import CONFIG, INDEX, SINGLE, not_a_checkpoint
from nanollama.formats.safetensors import SafetensorsFile
from nanollama.formats.strict_json import Json, read_object
from nanollama.model.checkpoint import Checkpoint
from nanollama.model.families.config import Config
from nanollama.model.generation_config import generation_settings
from nanollama.model.multimodal import text_config, text_tensors
from nanollama.model.quantized import StoredTensor, unpacked
from nanollama.model.registry import family_of_config
from nanollama.text.tokenizer import Tokenizer
from nanollama.text.tokenizer_settings import read_settings

_MAX_INDEX_BYTES = 16 << 20
_MAX_SHARDS = 1024


def open_folder(path: str | Path) -> Checkpoint:
    """Open a checkpoint folder and find its family.

    Of a model for text and images the text part is opened, with a warning.

    Raises:
        FormatError: a file is missing, malformed or contradicts another one.
        UnsupportedError: its architecture, a tensor's data type or its tokenizer is not supported.
        ModelNotFoundError: there is no such folder.
    """
    folder = Path(path)
    whole = _config(folder)
    config = text_config(whole)
    family = family_of_config(config)
    settings = read_settings(folder)
    generation = folder / "generation_config.json"
    wanted = generation_settings(read_object(generation) if generation.exists() else {}, config)
    shards = _Shards(folder)
    try:
        tensors_of_text, left_out = text_tensors(whole, shards.tensors)
        stored = unpacked(config, tensors_of_text)
        spec = family.from_config(Config(config, stored.__contains__))
        tensors = family.folder_parameters(spec, stored)
    except BaseException:
        shards.close()
        raise
    if left_out is not None:
        warnings.warn(f"{folder.name}: {left_out}", stacklevel=2)
    return Checkpoint(
        folder,
        spec,
        tensors,
        read_tokenizer=partial(
            Tokenizer.from_folder, folder, settings, vocab_size=spec.vocab_size, stop_ids=wanted.stop_ids
        ),
        chat_template=settings.chat_template,
        sampling=wanted.sampling,
        close=shards.close,
    )


def _config(folder: Path) -> Json:
    if not folder.is_dir():
        if folder.exists():
            raise FormatError(f"{folder.name} is a file, but a folder with a config.json was expected")
        raise ModelNotFoundError(f"there is no folder {folder}; check the path")
    path = folder / CONFIG
    if not path.exists():
        raise not_a_checkpoint(folder)
    return read_object(path)


class _Shards:
    """The open safetensors files of a folder. ``tensors`` holds those of all files."""

    def __init__(self, folder: Path) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        self._files: list[SafetensorsFile] = []
        single, index = folder / SINGLE, folder / INDEX
        try:
            if single.exists() or single.is_symlink():
                self._add(single)
            elif index.exists() or index.is_symlink():
                self._open_indexed(folder, _placed(index))
            else:
                raise not_a_checkpoint(folder)
        except BaseException:
            self.close()
            raise

    def _open_indexed(self, folder: Path, placed: Mapping[str, str]) -> None:
        for name in sorted(set(placed.values())):
            self._add(folder / name)
            for tensor, shard in placed.items():
                if shard == name and tensor not in self._files[-1].tensors:
                    raise FormatError(f"{INDEX} has the tensor {tensor!r:.100} in {name}, which lacks it")
        if unlisted := sorted(set(self.tensors) - set(placed)):
            raise FormatError(
                f"the tensor {unlisted[0]!r:.100} is in a file, but not in {INDEX}: the files are not of "
                "one model; fetch the folder again"
            )

    def _add(self, path: Path) -> None:
        try:
            file = SafetensorsFile(path)
        except ModelNotFoundError:
            raise FormatError(
                f"{path.name} is missing from {path.parent.name}, which needs it; fetch the folder again"
            ) from None
        self._files.append(file)
        for info in file.tensors.values():
            if info.name in self.tensors:
                raise FormatError(
                    f"the tensor {info.name!r:.100} is in two files, {path.name} and another; the files are "
                    "not of one model"
                )
            self.tensors[info.name] = StoredTensor(
                info.name,
                info.dtype,
                info.shape,
                read=partial(file.data, info.name),
                release=partial(file.release, info.name),
            )

    def close(self) -> None:
        for file in self._files:
            file.close()


def _placed(index: Path) -> dict[str, str]:
    """Tensor -> file name of the index, every file a plain name in the index's own folder."""
    if not index.exists():
        raise FormatError(f"{index.name} is a link to a file that is missing; fetch the folder again")
    placed = read_object(index, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise FormatError(f"weight_map in {index.name} is {placed!r:.60}; expected tensors and their files")
    for tensor, name in placed.items():
        if not isinstance(name, str) or not _is_plain(name):
            raise FormatError(
                f"{index.name} has the tensor {tensor!r:.60} in {name!r:.100}; expected the plain name of a "
                ".safetensors file in the same folder"
            )
    if len(set(placed.values())) > _MAX_SHARDS:
        raise FormatError(f"{index.name} names more than {_MAX_SHARDS} files")
    return placed


def _is_plain(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith(".") and not set(name) & set("/\\:\0")
