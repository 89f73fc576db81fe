"""The kernel tests once more, under address and undefined-behaviour sanitizers: scripts/test -m sanitize."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanollama.backends.native import build


def runtime(name: str) -> str:
    """The path of a sanitizer's runtime; just its name where the compiler has none."""
    compiler = build.find_compiler() or "c++"
    done = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.sanitize
def test_the_kernels_are_clean_under_sanitizers() -> None:
    runtimes = [runtime("libasan.so"), runtime("libubsan.so")]
    if not all(os.path.isabs(path) for path in runtimes):
        pytest.skip("this compiler has no sanitizer runtimes")
    environment = os.environ | {
        "KERNELS_SANITIZE": "address,undefined",
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself is not built for it
    }
    files = sorted(str(path) for path in Path(__file__).parent.glob("test_kernels*.py"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", *files],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
