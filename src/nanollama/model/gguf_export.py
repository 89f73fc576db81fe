"""Any model as the contents of a GGUF file: the path of a file or a checkpoint folder in, a ``Source`` out.

A folder's tensors, settings, tokenizer and chat template get the names and forms that llama.cpp reads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanollama.formats.folders import CONFIG
from nanollama.formats.gguf import GGUFFile
from nanollama.formats.gguf_write import Packed, Payload, Value
from nanollama.formats.strict_json import read_object
from nanollama.model.families.config import Config
from nanollama.model.folder import open_folder
from nanollama.model.multimodal import text_config
from nanollama.model.registry import family_of_config
from nanollama.model.to_gguf import gguf_of_folder
from nanollama.quant.formats import QuantFormat
from nanollama.quant.requantize import Source, SourceTensor, file_source
from nanollama.sampling.params import GGUF_KEYS
from nanollama.text.tokenizer_gguf import gguf_of_tokenizer


@contextmanager
def opened_source(path: Path) -> Iterator[Source]:
    """The model at ``path``, open as long as the context is.

    Raises:
        FormatError: what is there is damaged.
        UnsupportedError: it is nothing that is read, or GGUF can't say what a folder does.
        ModelNotFoundError: there is nothing.
    """
    if not path.is_dir():
        with GGUFFile(path) as file:
            yield file_source(file)
        return
    checkpoint = open_folder(path)
    try:
        config = text_config(read_object(path / CONFIG))
        family = family_of_config(config)
        metadata, tensors = gguf_of_folder(
            family, checkpoint.spec, Config(config, checkpoint.tensors.__contains__), checkpoint.tensors
        )
        keys: dict[str, Value] = {"general.architecture": family.gguf, "general.type": "model"} | metadata
        keys["general.name"] = path.resolve().name
        keys |= {
            key: checkpoint.sampling[name] for key, name in GGUF_KEYS.items() if name in checkpoint.sampling
        }
        keys |= gguf_of_tokenizer(path, checkpoint.tokenizer())
        if type(pad := config.get("pad_token_id")) is int and pad >= 0:
            keys["tokenizer.ggml.padding_token_id"] = pad
        if checkpoint.chat_template is not None:
            keys["tokenizer.chat_template"] = checkpoint.chat_template
        yield Source(path.resolve().name, keys, [_tensor(*tensor) for tensor in tensors])
    finally:
        checkpoint.close()


def _tensor(name: str, shape: tuple[int, ...], fmt: QuantFormat, payload: Payload) -> SourceTensor:
    def read() -> Packed:
        found = payload() if callable(payload) else payload
        return found if isinstance(found, Packed) else b"".join(found)

    return SourceTensor(name, shape, fmt, read, release=lambda: None)
