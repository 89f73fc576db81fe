"""Clients that go away, and clients that don't read: nothing of them stays behind."""

import asyncio
import contextlib
import json
import os
import random

import pytest

from nanollama.server.gate import SlowClientError
from nanollama.server.responses import NDJSON, StreamedReply
from nanollama.server.settings import Limits
from server.worlds import LiveServer, World, run, soon


def request_bytes(words, stream, path="/v1/chat/completions", **fields):
    body = {"model": "scripted", "messages": [{"role": "user", "content": words}], "stream": stream, **fields}
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def connect(live):
    return await asyncio.open_connection("127.0.0.1", live.port)


PHASES = {
    "before the first token": "hang=0",
    "while the prompt runs": "prefill=100",
    "after two tokens": "hang=2",
    "while tokens come": "tokens=1000 delay=0.01",
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("words", PHASES.values(), ids=PHASES.keys())
def test_an_answer_ends_when_its_client_goes(live, words, stream):
    async def main():
        _, writer = await connect(live)
        writer.write(request_bytes(words, stream))
        while not live.services.admission.held or not live.source.models or not live.llm.engine.open:
            await asyncio.sleep(0.005)
        writer.close()
        await live.settled()

    run(main())


def test_a_client_that_goes_while_its_model_loads_leaves_nothing_but_the_model():
    async def main():
        with LiveServer() as live:
            live.source.hold.clear()
            _, writer = await connect(live)
            writer.write(request_bytes("hi", True))
            while not live.source.loads:
                await asyncio.sleep(0.005)
            writer.close()
            await live.settled()
            live.source.hold.set()
            reader, writer = await connect(live)
            writer.write(request_bytes("tokens=1", False))
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
            assert live.source.loads == {"scripted": 1}

    run(main())


def test_a_client_that_goes_in_the_middle_of_its_body_leaves_nothing(live):
    async def main():
        _, writer = await connect(live)
        writer.write(request_bytes("hi", True)[:-10])
        while not live.services.admission.held:
            await asyncio.sleep(0.005)
        writer.close()
        await live.settled()

    run(main())


def test_five_hundred_clients_that_go_at_random_moments_leave_nothing_behind():
    chance = random.Random(7)

    async def leave(live, gate):
        async with gate:
            _, writer = await connect(live)
            stream = chance.random() < 0.7
            data = request_bytes("tokens=30 delay=0.002 prefill=0.01", stream, n=chance.choice([1, 1, 2]))
            length = len(data) if chance.random() < 0.75 else chance.randrange(len(data))
            writer.write(data[:length])
            await asyncio.sleep(chance.random() * 0.06)
            if chance.random() < 0.3:
                writer.transport.abort()
            writer.close()

    async def main():
        with LiveServer() as live:
            with live.openai() as client:
                client.models.list()
            gate = asyncio.Semaphore(40)
            await leave(live, gate)
            await live.settled()
            descriptors = len(os.listdir("/proc/self/fd"))
            await asyncio.gather(*(leave(live, gate) for _ in range(500)))
            await live.settled()

            def left_behind():
                """What is held beside the server's own. A call may be over before its task has ended."""
                state, own_tasks = live.listener.server_state, 3
                kept = {
                    "connections": len(state.connections),
                    "tasks of calls": len(state.tasks),
                    "tasks": len(asyncio.all_tasks(live.listener_loop)) - own_tasks,
                    "descriptors": len(os.listdir("/proc/self/fd")) - descriptors,
                }
                return {name: count for name, count in kept.items() if count > 0}

            assert await soon(lambda: not left_behind()), left_behind()
            assert live.llm.engine.peak > 1

    run(main())


def test_a_reader_that_stops_reading_is_cut_off_and_holds_up_nobody():
    limits = Limits(slow_reader_s=0.3, queued_events=16)

    async def main():
        with LiveServer(limits=limits) as live:
            reader, writer = await connect(live)
            writer.transport.pause_reading()
            data = request_bytes("tokens=30000", True, logprobs=True, top_logprobs=20, max_tokens=30000)
            writer.write(data)
            while not live.source.models:
                await asyncio.sleep(0.01)
            other, other_writer = await connect(live)
            other_writer.write(request_bytes("tokens=3", False))
            assert (await other.readline()).startswith(b"HTTP/1.1 200")
            other_writer.close()
            await live.settled()
            assert 'outcome="slow_client"} 1.0' in live.services.metrics.text().decode()
            writer.transport.resume_reading()
            rest = b""
            with contextlib.suppress(ConnectionError):
                while piece := await reader.read(1 << 20):
                    rest += piece
            assert not rest.endswith(b"[DONE]\n\n")
            writer.close()

    run(main())


def test_a_reader_that_leaves_only_the_end_unread_is_cut_off_as_well():
    """The last write of a body had no limit: who did not read it kept a place for ever."""

    class Stuck:
        """A reader that takes all but the end of the body."""

        async def __call__(self, message):
            if message["type"] == "http.response.body" and not message["more_body"]:
                await asyncio.Event().wait()

    class Two(StreamedReply):
        async def pieces(self):
            yield b"one"
            yield b"two"

    async def main():
        with pytest.raises(SlowClientError):
            await Two(Limits(slow_reader_s=0.05), NDJSON)({}, None, Stuck())

    run(main())


def test_a_client_that_goes_is_counted_as_cancelled_and_not_as_an_error(caplog):
    async def main():
        world = World()
        async with world.client() as client:
            task = asyncio.create_task(
                client.post("/v1/completions", json={"model": "scripted", "prompt": "hang=0"})
            )
            while not world.source.models or not world.llm.engine.open:
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await world.settled()

    run(main())
    assert not caplog.records
