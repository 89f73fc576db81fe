"""Opening a model file: a GGUF path in; spec, packed tensors under checkpoint names, and text settings out.

Nothing is decoded here. A tensor stays the bytes of the mapped file until a backend asks for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanollama.errors import FormatError
from nanollama.formats.gguf import GGUFFile, TensorInfo
from nanollama.formats.names import ROPE_TENSORS, hf_name
from nanollama.model.families.metadata import Metadata
from nanollama.model.registry import Family, family_of
from nanollama.model.spec import ModelSpec
from nanollama.quant.formats import QuantFormat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """One parameter as the file stores it. ``shape`` is (rows, columns) or (size,), columns contiguous.

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


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open model file. ``tensors`` maps Hugging Face parameter names to packed tensors."""

    path: Path
    spec: ModelSpec
    tensors: Mapping[str, PackedTensor]
    metadata: Mapping[str, Any]
    close: Callable[[], None]

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja template, if it has one."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None


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
    return Checkpoint(Path(path), spec, tensors, file.metadata, file.close)


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
        name = hf_name(info.name, post_norms=spec.norm.post)
        if name is None:
            raise FormatError(
                f"the tensor {info.name!r} has no place in a {spec.family} model; "
                "the file is damaged or of a newer variant"
            )
        heads = paired.get(name.split(".")[-2]) if family.pairs_interleaved else None
        tensors[name] = _packed(file, info, name, heads)
    return tensors
