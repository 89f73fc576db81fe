"""Signals reach the main thread, wherever it waits: no other thread takes them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Reads the signal masks of all threads while an answer runs. SigBlk is a set of bits; bit 1 is SIGINT.
CODE = """
import os, sys
from nanollama import LLM
from nanollama.cli.main import main
main(["--version"])  # sets up the process as every command does
with LLM(sys.argv[1], backend=sys.argv[2], device="cpu", threads=3) as llm:
    answer = llm.stream("Once upon a time", max_tokens=20)
    next(answer)
    for thread in os.listdir("/proc/self/task"):
        status = open(f"/proc/self/task/{thread}/status").read()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        print(int(thread) == os.getpid(), bool(blocked & 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.model
def test_only_the_main_thread_takes_interrupts(smollm2_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(smollm2_path), "native"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    threads = [line.split() for line in lines if line.endswith(("True", "False"))]
    assert ["True", "False"] in threads
    others = [blocked for is_main, blocked in threads if is_main == "False"]
    assert len(others) >= 3  # the engine's, and two of the pool
    assert set(others) == {"True"}


@pytest.mark.skipif(sys.platform != "linux", reason="sends a signal to a process")
@pytest.mark.model
def test_an_interrupt_wakes_a_program_that_waits_for_input(smollm2_path: Path) -> None:
    code = (
        "import signal, sys\n"
        "from nanollama import LLM\n"
        # Started by a background job, this process would ignore interrupts.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "llm = LLM(sys.argv[1], backend='native', n_ctx=256)\n"
        "llm.generate('Hi', max_tokens=2)\n"
        "try:\n"
        "    print('ready', flush=True); sys.stdin.readline()\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(smollm2_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.wait(20) == 0
