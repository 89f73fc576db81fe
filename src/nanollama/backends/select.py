"""Which backend runs a model: what was asked for and what this machine has in, a loaded backend out.

``native`` is the way on a CPU and imports no torch. ``torch`` is the way on a GPU, for a data type other than
the file's own, to have the model compiled, for shapes the kernels have no code for, and where the kernels
could not be built; then a notice says so.
"""

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nanollama.backends.ops import Backend
from nanollama.errors import BackendError, UnsupportedError, UsageError
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.spec import ModelSpec
from nanollama.types import BACKENDS, DEVICES, DTYPES

DEFAULT_DTYPES = {"cpu": "float32", "cuda": "bfloat16", "mps": "float16"}

THREADS_PER_PROCESSOR = 8
"""More threads than that only wait for one another: a thousand on two processors take seconds for a token."""


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """What the caller asked for. ``None`` leaves a choice open; ``threads`` counts the caller's own.

    ``keep_packed`` leaves quantized matrices packed on the torch backend, which takes less memory and longer.
    """

    backend: str = "auto"
    device: str = "auto"
    dtype: str | None = None
    threads: int | None = None
    compile: bool = False
    keep_packed: bool = False

    def __post_init__(self) -> None:
        """Refuse what can't be, before anything is loaded.

        Raises:
            UsageError: names the option and what it takes.
        """
        for name, value, known in (
            ("backend", self.backend, BACKENDS),
            ("device", self.device, DEVICES),
            ("dtype", self.dtype, (None, *DTYPES)),
        ):
            if value not in known:
                raise UsageError(f"{name} is {value!r}; expected one of {', '.join(filter(None, known))}")
        if self.threads is not None and (isinstance(self.threads, bool) or not 1 <= self.threads <= 1024):
            raise UsageError(f"threads is {self.threads!r}; expected a whole number from 1 to 1024")
        if self.backend == "native" and self.device not in ("auto", "cpu"):
            raise UsageError(f"the native backend runs on the cpu, not on {self.device}; use --backend torch")
        if self.backend == "native" and self.dtype is not None:
            raise UsageError(
                f"the native backend computes with the file's own types, not in {self.dtype}; "
                "leave --dtype out or use --backend torch"
            )
        if self.backend == "native" and self.compile:
            raise UsageError(
                "the native backend is compiled already; leave --compile out or use --backend torch"
            )


@dataclass(frozen=True, slots=True)
class LoadedBackend:
    """A backend, and what it is: ``dtype`` is ``as stored`` on the native one.

    Its weights may still be on their way in: ``finish`` returns when they are, and a step waits for them too.
    """

    backend: Backend
    name: str
    device: str
    dtype: str
    finish: Callable[[], None] = lambda: None


def load_backend(
    choice: BackendChoice,
    spec: ModelSpec,
    tensors: Mapping[str, PackedTensor],
    *,
    cache_tokens: int,
    notice: Callable[[str], None],
) -> LoadedBackend:
    """Load the weights onto the best backend that the choice allows.

    ``notice`` is told when that is not the fastest one.

    Raises:
        BackendError: the backend or device asked for can't be used here.
        UnsupportedError: the native backend was asked for by name and has no code for the model's shape.
        FormatError: the tensors do not fill the model.
    """
    wants_native = choice.backend == "native" or (
        choice.backend == "auto"
        and choice.dtype is None
        and not choice.compile
        and (choice.device == "cpu" or not _may_have_gpu(choice))
    )
    if wants_native:
        try:
            return _load_native(choice, spec, tensors, cache_tokens, notice)
        except (BackendError, UnsupportedError) as error:
            if choice.backend == "native":
                raise
            notice(f"using the slower torch backend: {error}")
    return _load_torch(choice, spec, tensors, cache_tokens, notice)


def physical_cores() -> int:
    """Cores this process may use, not counting a second thread of the same core."""
    siblings = set()
    for cpu in _processors():
        try:
            with open(
                f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", encoding="ascii"
            ) as file:
                siblings.add(file.read())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))


def thread_count(wanted: int | None, notice: Callable[[str], None] = lambda text: None) -> int:
    """The threads that compute on the CPU: ``wanted``, or one for each physical core.

    ``notice`` is told where that is cut to ``THREADS_PER_PROCESSOR``.
    """
    if wanted is None:
        return physical_cores()
    processors = _processors()
    most = THREADS_PER_PROCESSOR * len(processors)
    if wanted > most:
        notice(f"{wanted} threads would wait for one another on {len(processors)} processors: using {most}")
    return min(wanted, most)


def _processors() -> Sequence[int]:
    """The numbers of the processors that this process may use."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else range(os.cpu_count() or 1)


def _load_native(
    choice: BackendChoice,
    spec: ModelSpec,
    tensors: Mapping[str, PackedTensor],
    cache_tokens: int,
    notice: Callable[[str], None],
) -> LoadedBackend:
    from nanollama.backends.native.backend import NativeBackend, check_supported
    from nanollama.backends.native.library import Library
    from nanollama.backends.native.locate import find_library

    check_supported(spec)
    backend = NativeBackend(
        spec,
        tensors,
        library=Library(find_library()),
        threads=thread_count(choice.threads, notice),
        cache_tokens=cache_tokens,
    )
    return LoadedBackend(backend, "native", "cpu", "as stored", backend.finish_loading)


def _load_torch(
    choice: BackendChoice,
    spec: ModelSpec,
    tensors: Mapping[str, PackedTensor],
    cache_tokens: int,
    notice: Callable[[str], None],
) -> LoadedBackend:
    import torch

    from nanollama.backends.torch_backend import TorchBackend, choose_device

    device = choose_device(choice.device)
    dtype = choice.dtype or DEFAULT_DTYPES[device]
    if choice.threads is not None:
        torch.set_num_threads(thread_count(choice.threads, notice))
    backend = TorchBackend(
        spec,
        tensors,
        device=device,
        dtype=dtype,
        cache_tokens=cache_tokens,
        keep_packed=choice.keep_packed,
        compile=choice.compile,
        notice=notice,
    )
    return LoadedBackend(backend, "torch", device, dtype)


def _may_have_gpu(choice: BackendChoice) -> bool:
    """Whether asking torch for a GPU is worth the second that its import takes."""
    if choice.device in ("cuda", "mps"):
        return True
    return os.path.exists("/dev/nvidiactl") or (sys.platform == "darwin" and platform.machine() == "arm64")
