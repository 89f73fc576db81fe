"""Concurrent streams against our server and llama.cpp's, on the same file, threads and number of slots.

    python bench/server_load.py MODEL.gguf [--streams 1,8,32] [--tokens 96] [--pairs 3] [--threads 2]

llama.cpp's server comes from the wheel xllamacpp. Each run opens all streams at once: first with prompts that
the server has not seen, for four tokens; then with the same prompts, and counts the tokens that arrive.
Greedy, and no answer ends early. Time to first token is the 95th percentile.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

PEER = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel = sys.argv[1], int(sys.argv[2])
params.n_ctx = int(sys.argv[2]) * 512
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
time.sleep(3600)
"""
WORDS = [
    "river",
    "stone",
    "lamp",
    "cloud",
    "garden",
    "mirror",
    "engine",
    "paper",
    "winter",
    "candle",
    "bridge",
    "signal",
    "forest",
    "window",
]


@contextmanager
def process(command: list[str], pattern: str) -> Iterator[tuple[str, int]]:
    """A server process; gives the address that it prints, and its id."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        address = next((m[1] for line in child.stdout if (m := re.search(pattern, line))), None)
        if address is None:
            raise RuntimeError(f"{command[:4]} did not start")
        try:
            yield address, child.pid
        finally:
            child.kill()


async def stream(client: httpx.AsyncClient, model: str, number: int, tokens: int) -> tuple[float, int]:
    """One stream, whose prompt is that of ``number``: seconds to its first token, and how many came."""
    words = " ".join(random.Random(number).choices(WORDS, k=12))
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Write a long story with these words: {words}."}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    start, first, count = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            raise RuntimeError(f"{reply.status_code}: {(await reply.aread())[:300]!r}")
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                count = chunk["usage"]["completion_tokens"]
            if not first and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - start
    return first, count


async def load(address: str, numbers: range, tokens: int) -> tuple[float, float]:
    """Tokens a second over all streams, and the 95th percentile of the time to the first token."""
    limits = httpx.Limits(max_connections=len(numbers))
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        start = time.perf_counter()
        results = await asyncio.gather(*(stream(client, model, i, tokens) for i in numbers))
        seconds = time.perf_counter() - start
    firsts = sorted(first for first, _ in results)
    return sum(count for _, count in results) / seconds, firsts[int(0.95 * (len(firsts) - 1))]


def main() -> None:
    """Measure in alternating pairs and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", default="2")
    args = parser.parse_args()
    ours = [sys.executable, "-m", "nanollama", "serve", args.model, "--port", "0", "--threads", args.threads]
    print("| streams | ours tok/s | llama-server tok/s | ratio | first token p95, new prompts, ours | theirs "
          "| seen before, ours | theirs |")  # fmt: skip
    print("| --- " * 8 + "|")
    for streams in map(int, args.streams.split(",")):
        peer = [sys.executable, "-c", PEER, args.model, str(streams), args.threads]
        with process(ours, r"server on (\S+)") as (a, _), process(peer, r"listening (\S+)") as (b, _):
            pairs = measure((a, b), streams, args.tokens, args.pairs)
        ratio = statistics.median(pair[0][0] / pair[1][0] for pair in pairs)
        speeds, *firsts = (
            [statistics.median(pair[side][what] for pair in pairs) for side in (0, 1)] for what in range(3)
        )
        print(
            f"| {streams} | {speeds[0]:.0f} | {speeds[1]:.0f} | **{ratio:.2f}** "
            + "".join(f"| {mine:.3f} s | {theirs:.3f} s " for mine, theirs in firsts)
            + "|",
            flush=True,
        )


def measure(
    addresses: tuple[str, str], streams: int, tokens: int, pairs: int
) -> list[list[tuple[float, float, float]]]:
    """Of each pair and server: tokens a second, and the first token of new prompts and of the same again."""
    for address in addresses:
        asyncio.run(load(address, range(streams), 4))
    found = []
    for pair in range(1, pairs + 1):
        numbers = range(pair * streams, (pair + 1) * streams)
        row = []
        for address in addresses:
            _, first = asyncio.run(load(address, numbers, 4))
            speed, again = asyncio.run(load(address, numbers, tokens))
            row.append((speed, first, again))
        found.append(row)
    return found


if __name__ == "__main__":
    main()
