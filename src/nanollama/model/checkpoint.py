"""An open model, and opening a GGUF file as one: a path in; spec, packed tensors and text settings out.

Nothing is decoded here. A tensor stays the bytes of the mapped file until a backend asks for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanollama.errors import FormatError
from nanollama.formats.gguf import GGUFFile, TensorInfo
from nanollama.formats.names import ROPE_TENSORS, hf_name
from nanollama.model.families.metadata import Metadata
from nanollama.model.parameters import parameters
from nanollama.model.registry import Family, family_of
from nanollama.model.spec import ModelSpec
from nanollama.quant.formats import QuantFormat
from nanollama.sampling.params import model_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nanollama.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """One parameter as the file stores it. ``shape`` is (size,), (rows, columns) or (planes, rows, columns),
    columns contiguous.

    ``release`` gives up the memory that reading took. ``paired_heads`` is the number of heads whose rows must
    be put back into half-split order, ``None`` for nearly all tensors. Whole rows move, so quantized blocks
    stay intact.
    """

    name: str
    fmt: QuantFormat
    shape: tuple[int, ...]
    read: Callable[[], memoryview]
    paired_heads: int | None = None
    release: Callable[[], None] = lambda: None

    def packed(self) -> "NDArray[np.uint8]":
        """The bytes as ``[rows, bytes per row]``, rows in half-split order."""
        import numpy as np

        data = np.frombuffer(self.read(), dtype=np.uint8)
        if self.paired_heads is None:
            return data.reshape(self.shape[0] if len(self.shape) > 1 else 1, -1)
        data = data.reshape(self.shape[0], -1)
        pairs = data.reshape(self.paired_heads, -1, 2, data.shape[1])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(data.shape)

    def float32(self) -> "NDArray[np.float32]":
        """The decoded values in ``shape``."""
        from nanollama.quant.decode import dequantize

        return dequantize(self.fmt, self.packed().reshape(-1), self.shape, name=f"the tensor {self.name}")

    def rows(self, start: int, stop: int) -> "PackedTensor":
        """The rows (of a vector: the elements) from ``start`` up to ``stop``, in half-split order.

        Nothing is read before the part is.
        """
        assert 0 <= start <= stop <= self.shape[0], f"{self.name} has no rows {start} to {stop}"
        each = self.fmt.nbytes(prod(self.shape[1:]))

        def read() -> memoryview:
            whole = self.read() if self.paired_heads is None else self.packed().reshape(-1).data
            return whole[start * each : stop * each]

        return replace(self, shape=(stop - start, *self.shape[1:]), read=read, paired_heads=None)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open model, a GGUF file or a checkpoint folder.

    ``tensors`` maps Hugging Face parameter names to packed tensors, ``chat_template`` is the model's own
    Jinja template, ``sampling`` holds the settings that the model states, under our names, and ``close`` lets
    its files go.
    """

    path: Path
    spec: ModelSpec
    tensors: Mapping[str, PackedTensor]
    read_tokenizer: "Callable[[], Tokenizer]"
    chat_template: str | None
    sampling: Mapping[str, float]
    close: Callable[[], None]

    def tokenizer(self) -> "Tokenizer":
        """The model's tokenizer, read anew at each call; FormatError and UnsupportedError as for the rest."""
        return self.read_tokenizer()

    @property
    def num_parameters(self) -> int:
        """Weights of the model, those that two uses share counted once."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a GGUF file or a checkpoint folder; errors as in :func:`open_gguf` and ``open_folder``."""
    if not Path(path).is_dir():
        return open_gguf(path)
    from nanollama.model.folder import open_folder

    return open_folder(path)


def open_gguf(path: str | Path) -> Checkpoint:
    """Open a GGUF file and find its family.

    Raises:
        FormatError: the file is malformed or inconsistent.
        UnsupportedError: its architecture or a tensor type is not supported.
        ModelNotFoundError: there is no such file.
    """
    file = GGUFFile(path)
    try:
        architecture = file.metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise FormatError(
                f"general.architecture is {architecture!r}; expected the name of an architecture"
            )
        family = family_of(architecture)
        spec = family.from_gguf(_metadata(file, architecture))
        tensors = _parameters(file, family, spec)
    except BaseException:
        file.close()
        raise
    template = file.metadata.get("tokenizer.chat_template")
    return Checkpoint(
        Path(path),
        spec,
        tensors,
        read_tokenizer=partial(_gguf_tokenizer, file.metadata),
        chat_template=template if isinstance(template, str) else None,
        sampling=model_settings(file.metadata),
        close=file.close,
    )


def _gguf_tokenizer(metadata: Mapping[str, Any]) -> "Tokenizer":
    from nanollama.text.tokenizer import Tokenizer

    return Tokenizer.from_gguf(metadata)


def _metadata(file: GGUFFile, architecture: str) -> Metadata:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError(
            "the tensor token_embd.weight is missing or not a matrix; the file holds no language model"
        )

    def vector(name: str) -> tuple[float, ...] | None:
        if name not in file.tensors:
            return None
        return tuple(_packed(file, file.tensors[name], name, None).float32().reshape(-1).tolist())

    return Metadata(architecture, file.metadata, vector, file.tensors.__contains__, embedding.shape[0])


def _packed(file: GGUFFile, info: TensorInfo, name: str, paired_heads: int | None) -> PackedTensor:
    return PackedTensor(
        name,
        info.fmt,
        info.shape,
        read=lambda: file.data(info.name),
        paired_heads=paired_heads,
        release=lambda: file.release(info.name),
    )


def _parameters(file: GGUFFile, family: Family, spec: ModelSpec) -> dict[str, PackedTensor]:
    """Every tensor of the file under its checkpoint name; one without such a name is an error."""
    paired = {"q_proj": spec.attention.num_heads, "k_proj": spec.attention.num_kv_heads}
    tensors: dict[str, PackedTensor] = {}
    for info in file.tensors.values():
        if info.name in ROPE_TENSORS:
            continue
        name = hf_name(info.name, family.gguf_names)
        if name is None:
            raise FormatError(
                f"the tensor {info.name!r} has no place in a {spec.family} model; "
                "the file is damaged or of a newer variant"
            )
        heads = paired.get(name.split(".")[-2]) if family.pairs_interleaved else None
        tensors[name] = _packed(file, info, name, heads)
    return parameters(spec, tensors)
