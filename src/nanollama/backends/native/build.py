"""Compiles the kernels: the C++ files of this folder come in, one shared library with a C ABI goes out.

The library depends on nothing but the C library. It is built for the plain architecture; what needs newer
instructions is compiled for them by its own file and chosen at run time, so that the result runs on any
machine of the architecture.
"""

import hashlib
import os
import platform
from pathlib import Path

from nanollama.errors import BackendError

SOURCE_DIR = Path(__file__).parent

FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    # A product and a sum are fused only where a kernel says so: results must not depend on what else the
    # compiler saw around them.
    "-ffp-contract=off",
    # Kernels read no errno and no floating-point flags; infinities, NaN and subnormals keep their meaning.
    "-fno-math-errno",
    "-fno-trapping-math",
    # gcc would otherwise move loads and unpacking together in unrolled tiles and spill: the 4-bit tile does
    # 131 GMAC/s with this flag and 108 without (Zen 5, AVX2).
    "-fno-tree-ter",
    # 32-byte vectors are passed between inlined functions only: how an ABI would pass them does not matter.
    "-Wno-psabi",
)


def find_compiler() -> str | None:
    """The command of a C++ compiler: ``$CXX``, ``c++``, ``g++`` or ``clang++``; ``None`` if there is none."""
    import shlex
    import shutil

    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(shlex.split(name)[0]):
            return name
    return None


def sources() -> tuple[Path, ...]:
    """The files that are compiled, each on its own."""
    return tuple(sorted(SOURCE_DIR.glob("*.cpp")))


def digest() -> str:
    """A short name for what would be built: it changes with the sources, the flags and the architecture."""
    content = hashlib.sha256(" ".join((*FLAGS, platform.machine(), platform.system())).encode())
    for path in sorted((*sources(), *SOURCE_DIR.glob("*.h"))):
        content.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:16]


def build(target: Path, extra_flags: tuple[str, ...] = ()) -> None:
    """Compile the library into ``target``, which appears complete or not at all.

    ``extra_flags`` are added to compiling and linking, for sanitizers.

    Raises:
        BackendError: there is no compiler, or it failed; the message carries what it said first.
    """
    import shlex
    import tempfile
    from concurrent.futures import ThreadPoolExecutor

    compiler = find_compiler()
    if compiler is None:
        raise BackendError(
            "the CPU kernels need a C++ compiler and none was found; install g++ or clang, or set CXX"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        command = [*shlex.split(compiler), *FLAGS, *extra_flags]
        objects = {source: Path(folder) / f"{source.stem}.o" for source in sources()}

        def compile_one(source: Path) -> None:
            _run([*command, "-c", str(source), "-o", str(objects[source])])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, objects))
        library = Path(folder) / target.name
        _run([*command, "-shared", "-pthread", *map(str, objects.values()), "-o", str(library)])
        library.replace(target)


def _run(command: list[str]) -> None:
    import subprocess

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        reason = next((line for line in said if "error" in line), said[0])
        raise BackendError(f"the CPU kernels could not be compiled with {command[0]}: {reason}")
