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
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from urllib.parse import urlsplit
from urllib.request import urlopen

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
TOKEN = re.compile(rb'"content": ?"(?!")')
"""In a stream: a piece of text that is not empty."""


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


async def pieces(address: str, body: Mapping[str, object]) -> AsyncIterator[bytes]:
    """What comes over the socket for a chat request that streams, with HTTP's own framing.

    An HTTP client takes as long for a token as a server, and from the same processors.
    """
    url, data = urlsplit(address), json.dumps({**body, "stream": True}).encode()
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    try:
        first = piece = await reader.read(1 << 16)
        if b" 200 " not in first[:16]:
            raise RuntimeError(f"the server refused a request: {first[:500]!r}")
        while piece:
            yield piece
            piece = await reader.read(1 << 16)
    finally:
        writer.close()


async def stream(address: str, model: str, number: int, tokens: int) -> tuple[float, int]:
    """One stream, whose prompt is that of ``number``: seconds to its first token, and how many came."""
    words = " ".join(random.Random(number).choices(WORDS, k=12))
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Write a long story with these words: {words}."}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    start, first, seen = time.perf_counter(), 0.0, b""
    async with aclosing(pieces(address, body)) as coming:
        async for piece in coming:
            seen = (seen if not first else seen[-2000:]) + piece
            if not first and TOKEN.search(seen):
                first = time.perf_counter() - start
    count = re.search(rb'"completion_tokens": ?(\d+)', seen)
    if not first or count is None:
        raise RuntimeError(f"the stream ended early: {seen[-500:]!r}")
    return first, int(count[1])


async def load(address: str, numbers: range, tokens: int) -> tuple[float, float]:
    """Tokens a second over all streams, and the 95th percentile of the time to the first token."""
    with urlopen(f"{address}/v1/models") as reply:
        model = json.load(reply)["data"][0]["id"]
    start = time.perf_counter()
    results = await asyncio.gather(*(stream(address, model, i, tokens) for i in numbers))
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
