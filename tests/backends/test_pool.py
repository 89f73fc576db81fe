"""The thread pool under random jobs: every unit runs once and in its phase, and sanitizers find nothing."""

import subprocess
from pathlib import Path

import pytest

from nanollama.backends.native import build

SOURCE = Path(__file__).parent / "pool_stress.cpp"


@pytest.mark.parametrize("flags", [(), ("-fsanitize=thread", "-g"), ("-fsanitize=address,undefined", "-g")])
def test_random_jobs_keep_their_order(flags: tuple[str, ...], tmp_path: Path) -> None:
    compiler = build.find_compiler()
    if compiler is None:
        pytest.skip("the pool can't be compiled here: no C++ compiler was found (install g++ or set CXX)")
    program = tmp_path / "pool_stress"
    command = [compiler, "-std=c++17", "-O2", "-pthread", *flags, f"-I{build.SOURCE_DIR}"]
    built = subprocess.run(
        [*command, str(SOURCE), str(build.SOURCE_DIR / "pool.cpp"), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0 and flags and "cannot find" in built.stderr:
        pytest.skip(f"this compiler has no runtime for {flags[0]}")
    assert built.returncode == 0, built.stderr
    jobs = "20000" if not flags else "1500"
    done = subprocess.run([str(program), jobs], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
