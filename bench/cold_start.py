"""Seconds from the start of a process to the first token, and its memory: ours and llama-cpp-python's.

    python bench/cold_start.py MODEL.gguf [--pairs 8] [--threads 2]

Each pair starts ``nanollama run MODEL Hi`` and a script that does the same with llama-cpp-python (a benchmark
dependency), one after the other, with the file in the page cache.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

PEER = """
import sys, llama_cpp
llm = llama_cpp.Llama(sys.argv[1], n_ctx=8192, n_threads=int(sys.argv[2]), verbose=False)
messages = [{"role": "user", "content": "Hi"}]
for part in llm.create_chat_completion(messages, temperature=0, max_tokens=8, stream=True):
    text = part["choices"][0]["delta"].get("content")
    if text:
        print(text, end="", flush=True)
"""


def first_token(command: list[str]) -> tuple[float, float]:
    """Seconds to the first byte of output, and the peak resident memory in MB."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[:4]} ended with {process.returncode}")
    return seconds, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    """Measure and print one line for each side, and the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    threads = str(args.threads)
    ours = [
        sys.executable,
        "-m",
        "nanollama",
        "run",
        args.model,
        "Hi",
        "--max-tokens",
        "8",
        "--threads",
        threads,
    ]
    theirs = [sys.executable, "-c", PEER, args.model, threads]
    first_token(ours)
    first_token(theirs)
    pairs = [(first_token(ours), first_token(theirs)) for _ in range(args.pairs)]
    for name, i in (("nanollama", 0), ("llama-cpp-python", 1)):
        seconds = [pair[i][0] for pair in pairs]
        memory = statistics.median(pair[i][1] for pair in pairs)
        median, best = statistics.median(seconds), min(seconds)
        print(f"{name:17} first token {median:.3f} s (best {best:.3f}), {memory:.0f} MB")
    time_ratio = statistics.median(a[0] / b[0] for a, b in pairs)
    memory_ratio = statistics.median(a[1] / b[1] for a, b in pairs)
    print(f"ratio             time {time_ratio:.2f}, memory {memory_ratio:.2f}")


if __name__ == "__main__":
    main()
