"""The torch backend: weights and a KV cache on one device, and a step that runs the recipe over them.

ModelInput in, float32 logits out. Weights are decoded and converted once, one tensor at a time: peak memory
while loading is the weights in the chosen data type plus the largest single tensor in float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray

from nanollama.backends.ops import ModelInput
from nanollama.backends.torch_cache import TorchCache
from nanollama.backends.torch_choice import edited, highest
from nanollama.backends.torch_model import TorchModel
from nanollama.backends.torch_weights import TorchPacker
from nanollama.errors import BackendError
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.spec import ModelSpec
from nanollama.model.weights import load_weights
from nanollama.sampling.edits import Edits

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BLOCK_TOKENS = 32
MAX_ROWS = 4096
STEP_ROWS = 512
MAX_SEQUENCES = 1024


class TorchBackend:
    """One model on one device. Not thread-safe: one step at a time."""

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, PackedTensor],
        *,
        device: str,
        dtype: str,
        cache_tokens: int,
        keep_packed: bool = False,
        compile: bool = False,
        graphs: bool = True,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Load the weights and reserve a cache for ``cache_tokens`` tokens (rounded up to whole blocks).

        With ``keep_packed`` quantized matrices stay as they are and are decoded at each use. ``compile`` has
        steps compiled when their shape first comes up, of which ``notice`` is told, and on CUDA ``graphs``
        decode steps captured.

        Raises:
            FormatError: the tensors do not fill the model exactly.
            BackendError: the device has too little memory.
        """
        self.spec = spec
        self.block_tokens = BLOCK_TOKENS
        self.max_rows, self.step_rows, self.max_sequences = MAX_ROWS, STEP_ROWS, MAX_SEQUENCES
        self.num_blocks = -(-cache_tokens // BLOCK_TOKENS)
        self._device, self._dtype = torch.device(device), DTYPES[dtype]
        try:
            packer = TorchPacker(self._device, self._dtype, keep_packed=keep_packed)
            weights = load_weights(spec, tensors, packer)
            cache = TorchCache(
                spec.num_layers, self.num_blocks, BLOCK_TOKENS, spec.attention, self._device, self._dtype
            )
            self._model = TorchModel(spec, weights, cache, self._device, self._dtype)
            self._logits = self._model.logits
            if compile:
                from nanollama.backends.torch_compile import CompiledModel

                compiled = CompiledModel(self._model, graphs=graphs, notice=notice)
                with torch.no_grad():
                    compiled.prepare()
                self._logits = compiled.logits
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise BackendError(
                f"the {device} device has too little memory for this model in {dtype} with a context of "
                f"{cache_tokens} tokens; use a smaller --ctx or a half-precision --dtype"
            ) from error

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that decoding a token reads: the embedding table only where it is the head, and of
        the experts those that one token goes to.
        """
        w, experts = self._model.weights, self.spec.mlp.experts
        total = w.norm.nbytes + w.head.nbytes
        for layer in w.layers:
            sizes = {f.name: weight.nbytes for f in fields(layer) if (weight := getattr(layer, f.name))}
            if experts is not None:
                for name in ("gate_up", "down"):
                    sizes[name] = sizes[name] * experts.per_token // experts.count
            total += sum(sizes.values())
        return total

    def step(self, batch: ModelInput) -> NDArray[np.float32]:
        """Run one step; the logits ``[len(batch.logit_rows), vocab]``."""
        with torch.no_grad():
            return self._run(batch).float().cpu().numpy()

    def best(
        self, batch: ModelInput, k: int = 1, edits: Edits | None = None
    ) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """Run one step; of each logit row the ids of the ``k`` highest logits, and the logits."""
        with torch.no_grad():
            logits = self._run(batch).float()
            if edits:
                logits = edited(logits, edits)
            ids, values = highest(logits, k)
            # One copy, and so one wait, for both.
            both = torch.stack([ids.int(), values.view(torch.int32)]).cpu().numpy()
        return both[0], both[1].view(np.float32)

    def _run(self, batch: ModelInput) -> torch.Tensor:
        # Copies stay outside of what is compiled or captured: their number changes from step to step.
        if batch.copies:
            self._model.cache.copy_blocks(batch.copies)
        return self._logits(batch)

    def close(self) -> None:
        """Release the weights and the cache. Closing twice is no error, a step afterwards is one."""
        self.__dict__.pop("_model", None)
        self.__dict__.pop("_logits", None)


def choose_device(name: str) -> str:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        BackendError: the device asked for is not on this machine.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if present[d])
    if not present.get(name, False):
        usable = ", ".join(d for d, there in present.items() if there)
        raise BackendError(f"the device {name!r} is not available on this machine; available: {usable}")
    return name
