"""Sockets and signals: slow and broken requests, the end of the server, addresses that are taken."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from nanollama.errors import NanollamaError
from nanollama.server.settings import Limits, ServerSettings
from server.worlds import LiveServer, run

QUICK = Limits(header_s=0.3, body_s=0.4, idle_s=1, linger_s=0.2)


async def said(live, *pieces, pause_s=0.0):
    """What the server answers to raw bytes until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await reader.read()
    finally:
        writer.close()


@pytest.fixture(scope="module")
def quick():
    with LiveServer(limits=QUICK) as live:
        yield live


GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        (b"",),
        (GET,),
        (b"GET /health HTT",),
        (GET + b"x: y\r\n",),
        (POST,),
        (POST + b"{}",),
        (GET + b"\r\n", GET),
    ],
    ids=[
        "nothing",
        "no end",
        "half a line",
        "half a header",
        "no body",
        "half a body",
        "a second without end",
    ],
)
def test_a_request_that_does_not_arrive_is_given_up(quick, pieces):
    answer = run(said(quick, *pieces))
    assert answer.rpartition(b"HTTP/1.1 ")[2].startswith(b"408")
    assert b"request_timeout" in answer
    assert quick.becomes_quiet()


def test_a_drip_of_bytes_does_not_keep_a_connection(quick):
    with pytest.raises(ConnectionError):  # all thousand bytes would take twenty seconds
        run(said(quick, *(b"x" for _ in range(1000)), pause_s=0.02))


BROKEN = {
    "no HTTP": b"hello\r\n\r\n",
    "a header without a colon": GET + b"nonsense\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"host: localhost\r\n\r\n",
    "two lengths": b"POST /tokenize HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    "a huge header": GET + b"x: " + b"y" * (300 << 10),
    "a length in words": b"POST /tokenize HTTP/1.1\r\nhost: a\r\ncontent-length: ten\r\n\r\n",
    "a bad chunk": b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_http_is_answered_in_the_same_form_and_closed(quick, data):
    answer = run(said(quick, data))
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403"))
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}


def test_a_refused_body_does_not_spoil_the_connection(quick):
    """The body of a request that was refused unread must not be taken for the next request."""
    body = b"GET /evil HTTP/1.1\r\n" * 5
    first = b"POST /none HTTP/1.1\r\nhost: evil\r\ncontent-length: 100\r\n\r\n" + body
    answer = run(said(quick, first + GET + b"connection: close\r\n\r\n"))
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 403" in answer
    assert b'{"status":"ok"}' in answer


def test_an_endless_body_is_cut_off(quick):
    head = b"POST /tokenize HTTP/1.1\r\nhost: evil\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = run(said(quick, head, b"5\r\nhello\r\n"))
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"connection: close" in answer


def test_connections_too_many_are_told_so():
    async def main():
        with LiveServer(limits=Limits(connections=2, linger_s=0.1)) as live:
            held = [await asyncio.open_connection("127.0.0.1", live.port) for _ in range(2)]
            while len(live.listener.server_state.connections) < 2:
                await asyncio.sleep(0.01)
            answer = await said(live)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 5" in answer
            assert b"too_many_connections" in answer
            for _, writer in held:
                writer.close()
            while live.listener.server_state.connections:
                await asyncio.sleep(0.01)
            assert b"HTTP/1.1 200" in await said(live, GET + b"connection: close\r\n\r\n")

    run(main())


def test_an_upgrade_to_web_sockets_is_not_taken(quick):
    headers = b"connection: upgrade, close\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n"
    assert b"HTTP/1.1 200" in run(said(quick, GET + headers))


def test_running_answers_end_with_a_marker_when_the_time_is_over():
    limits = Limits(drain_s=0.3, keepalive_s=0.05)

    async def main():
        with LiveServer(limits=limits) as live:
            async with httpx.AsyncClient(base_url=live.url, timeout=20) as client:

                def ask(words, stream):
                    body = {"model": "scripted", "prompt": words, "stream": stream, "max_tokens": 999}
                    return asyncio.create_task(client.post("/v1/completions", json=body))

                asked = [
                    ask("hang=2", True),
                    ask("hang=2", False),
                    ask("hang=0", True),
                    ask("tokens=2", True),
                ]
                while len(live.source.models) < 1 or len(live.llm.engine.open) < 3:
                    await asyncio.sleep(0.01)
                live.listener.stop()
                late = await client.post("/v1/completions", json={})
                assert late.status_code == 503
                stream, whole, waiting, done = await asyncio.gather(*asked)
            for reply in (stream, waiting):
                assert reply.status_code == 200
                assert reply.text.endswith("data: [DONE]\n\n")
                assert "server_shutdown" in reply.text
            assert '"text":"b"' in stream.text
            assert whole.status_code == 503
            assert whole.json()["error"]["code"] == "server_shutdown"
            assert "server_shutdown" not in done.text
            live.thread.join(10)
            assert not live.thread.is_alive()
            assert live.llm.closed

    run(main())


def test_a_load_that_never_ends_does_not_hold_the_end_of_the_server():
    async def main():
        with LiveServer(limits=Limits(drain_s=0.1)) as live:
            live.source.hold.clear()
            async with httpx.AsyncClient(base_url=live.url, timeout=20) as client:
                body = {"model": "scripted", "prompt": "x"}
                task = asyncio.create_task(client.post("/v1/completions", json=body))
                while not live.source.loads:
                    await asyncio.sleep(0.01)
                live.listener.stop()
                reply = await task
                assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_shutdown")
            live.thread.join(10)
            assert not live.thread.is_alive()

    run(main())


def test_an_address_that_is_taken_is_said_in_a_sentence(quick, caplog):
    with caplog.at_level(logging.DEBUG):
        taken = LiveServer(ServerSettings(port=quick.port))
        from nanollama.server.listen import Listener

        failed = []

        def listen():
            try:
                Listener(taken.app, taken.services, lambda port: None).listen()
            except NanollamaError as error:
                failed.append(str(error))

        thread = threading.Thread(target=listen)
        thread.start()
        thread.join(10)
    assert f"127.0.0.1:{quick.port} (" in failed[0]
    assert "(address already in use)" in failed[0]


SCRIPT = """
import sys
from server.worlds import World
from nanollama.server.listen import Listener
from nanollama.server.settings import Limits, ServerSettings
world = World(ServerSettings(port=0), Limits(drain_s=float(sys.argv[1])))
Listener(world.app, world.services, lambda port: print(port, flush=True)).listen()
print("ended", flush=True)
"""


def process(drain_s):
    path = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(drain_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_with_success_after_what_runs(sent):
    with process(20) as server:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        body = {"model": "scripted", "prompt": "tokens=30 delay=0.02", "stream": True, "max_tokens": 50}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.send_signal(sent)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert len(rest) > 20
        out, err = server.communicate(timeout=20)
    assert (server.returncode, out, err) == (0, "ended\n", "")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(sent):
    with process(1000) as server:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        body = {"model": "scripted", "prompt": "hang=1", "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as reply:
            lines = reply.iter_lines()  # kept: its end would close the connection
            next(lines)
            server.send_signal(sent)
            while httpx.get(f"{url}/health").json() != {"status": "draining"}:
                time.sleep(0.02)
            server.send_signal(sent)
            assert server.wait(10) == 128 + sent
        server.communicate()
