"""What our server promises beyond speed: prefixes computed once, and a crowd that changes nobody's answer.

    python bench/server_streams.py MODEL.gguf [--prompt-tokens 2000] [--streams 256] [--compare 24]
        [--pairs 7]

Prints what HTTP adds to the time of a decoded token of one stream, beside the Python API in pairs; the time
to first token of a long prompt and of its repetition. Then it opens all streams at once, checks that each
completes, that as many as are compared equal the same request sent alone, and how far the memory of the
server grew beyond what it held before; last, how busy it is when nobody asks for anything.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx

from nanollama import LLM
from server_load import TOKEN, WORDS, pieces, process


def request(model: str, content: str, tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0.8,
        "seed": 7,
        "ignore_eos": True,
    }


async def first_token_s(address: str, body: dict[str, object]) -> float:
    start, seen = time.perf_counter(), b""
    async with aclosing(pieces(address, body)) as coming:
        async for piece in coming:
            seen += piece
            if TOKEN.search(seen):
                return time.perf_counter() - start
    raise RuntimeError("the stream ended without a token")


async def token_ms_over_http(address: str, body: dict[str, object]) -> float:
    """Milliseconds between two tokens of a stream, on average."""
    times: list[float] = []
    async with aclosing(pieces(address, body)) as coming:
        async for piece in coming:
            times += [time.perf_counter()] * piece.count(b'"content"')
    return 1000 * (times[-1] - times[1]) / (int(str(body["max_tokens"])) - 1)


def token_ms_in_python(llm: LLM, body: dict[str, Any]) -> float:
    """The same without HTTP."""
    names = ("max_tokens", "temperature", "seed", "ignore_eos")
    times = [
        time.perf_counter() for _ in llm.events(body["messages"], **{name: body[name] for name in names})
    ]
    return 1000 * (times[-1] - times[0]) / (body["max_tokens"] - 1)


async def compare_http(address: str, model: str, args: argparse.Namespace) -> None:
    """Pairs of one stream over HTTP and the same from Python, one after the other."""
    body = request(model, "Write a long story.", 128)
    with LLM(args.model, n_ctx=4096) as llm:
        pairs = []
        for _ in range(args.pairs + 1):
            pairs.append((await token_ms_over_http(address, body), token_ms_in_python(llm, body)))
    http, python = (statistics.median(each) for each in zip(*pairs[1:], strict=True))
    added = statistics.median(100 * (a / b - 1) for a, b in pairs[1:])
    print(f"a token of one stream: {http:.2f} ms over HTTP, {python:.2f} ms from Python; "
          f"HTTP adds {added:.1f} %")  # fmt: skip


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def answer(client: httpx.AsyncClient, body: dict[str, object]) -> str:
    reply = await client.post("/v1/chat/completions", json=body)
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"])


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


async def measure(address: str, pid: int, args: argparse.Namespace) -> None:
    """Everything the module's docstring says, one line each."""
    limits = httpx.Limits(max_connections=args.streams)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        await answer(client, request(model, "Hello", 4))
        await compare_http(address, model, args)
        firsts, repeats = [], []
        for attempt in range(3):
            words = " ".join(
                WORDS[(i * (attempt + 3)) % len(WORDS)] for i in range(int(args.prompt_tokens * 0.9))
            )
            body = request(model, f"{attempt} {words}", 2)
            count = (await client.post("/tokenize", json={"model": model, "prompt": words})).json()["count"]
            firsts.append(await first_token_s(address, body))
            repeats.append(await first_token_s(address, body))
        first, repeated = statistics.median(firsts), statistics.median(repeats)
        print(f"first token of a prompt of about {count} tokens: {first:.3f} s; repeated: {repeated:.3f} s "
              f"({100 * repeated / first:.1f} %)")  # fmt: skip

        bodies = [
            request(
                model, f"{i}. Write about a {WORDS[i % len(WORDS)]} and a {WORDS[i * 5 % len(WORDS)]}.", 48
            )
            for i in range(args.streams)
        ]
        before = resident_mb(pid)
        crowd = await asyncio.gather(*(answer(client, body) for body in bodies))
        after = resident_mb(pid)
        chosen = range(0, args.streams, max(1, args.streams // args.compare))
        equal = sum([await answer(client, bodies[i]) == crowd[i] for i in chosen])
        print(f"{args.streams} streams: all {len(crowd)} complete, {equal} of {len(chosen)} equal the same "
              f"request alone; resident memory {before:.0f} MB before, {after:.0f} MB after")  # fmt: skip
        await asyncio.sleep(1)
        start = cpu_s(pid)
        await asyncio.sleep(10)
        print(f"idle: {10 * (cpu_s(pid) - start):.2f} % of a core")


def main() -> None:
    """Start our server and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--compare", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args()
    command = [sys.executable, "-m", "nanollama", "serve", args.model, "--port", "0"]
    command += ["--ctx", "4096", "--max-seqs", "32", "--max-queue", str(args.streams)]
    with process(command, r"Starting server on (http://\S+)") as (address, pid):
        asyncio.run(measure(address, pid, args))


if __name__ == "__main__":
    main()
