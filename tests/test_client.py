"""The client of a server: the real application behind it, and servers that answer what they should not."""

import contextlib
import http.client
import json
import re
import socket
import threading
from datetime import UTC, datetime, timedelta

import pytest

from nanollama.client import Address, Client
from nanollama.errors import ModelNotFoundError, NanollamaError, OverloadedError, UsageError
from nanollama.server.settings import ServerSettings
from server.worlds import LiveServer


@pytest.fixture(scope="module")
def live():
    with LiveServer() as server:
        yield server


def client_of(server, key=None):
    return Client(Address("127.0.0.1", server.port), key)


@contextlib.contextmanager
def answering(*pieces):
    """A server that answers one call with ``pieces`` of bytes, whatever was asked, and goes away.

    It reads the whole call first: a socket closed with bytes unread resets the connection, and the client
    may lose an answer that was sent in time.
    """

    def answer():
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as call:
            call.readline()
            head = http.client.parse_headers(call)
            call.read(int(head.get("content-length", 0)))
            for piece in pieces:
                connection.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        yield Client(Address("127.0.0.1", listener.getsockname()[1]))
        thread.join(10)


def reply(body, status="200 OK"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


def chunked(*lines, ends=True):
    """A stream of lines; without ``ends`` it is cut."""
    chunks = [json.dumps(line).encode() + b"\n" for line in lines]
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body + (b"0\r\n\r\n" if ends else b"")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost", "http://localhost:8000"),
        ("example.org:80", "http://example.org:80"),
        (":9000", "http://127.0.0.1:9000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("0.0.0.0:81", "http://127.0.0.1:81"),
        ("[::]:81", "http://[::1]:81"),
        ("[::1]", "http://[::1]:8000"),
        ("http://127.0.0.1:11434/", "http://127.0.0.1:11434"),
        ("https://example.org", "https://example.org:443"),
        ("https://example.org:8443", "https://example.org:8443"),
    ],
)
def test_an_address_has_the_forms_that_ollama_takes(text, url):
    assert str(Address.parse(text)) == url


@pytest.mark.parametrize(
    "text", ["", "ftp://x", "http://x/path", "x:0", "x:65536", "x:-1", "user@x", "a b", "x:٣", "::1"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        Address.parse(text)


def test_without_a_server_the_sentence_says_how_to_start_one():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(
        NanollamaError, match=f"no server answers at http://127.0.0.1:{port}: .*nanollama serve"
    ):
        Client(Address("127.0.0.1", port)).running()


def test_a_key_is_asked_for_checked_and_sent():
    with LiveServer(settings=ServerSettings(port=0, api_keys=("right",))) as server:
        for key, said in ((None, "asks for a key: set NANOLLAMA_API_KEY"), ("wrong", "asks for another key")):
            with pytest.raises(NanollamaError, match=said):
                client_of(server, key).running()
        assert client_of(server, "right").running() == []
    with pytest.raises(UsageError, match="printable ASCII"):
        Client(Address("127.0.0.1", 1), "a\nb")


def test_a_model_is_described_loaded_listed_and_unloaded(live):
    client = client_of(live)
    assert client.show("scripted").modelfile.startswith("FROM scripted\n")
    client.load("scripted", 500)
    (running,) = client.running()
    assert (running.name, running.size, running.size_vram, running.n_ctx) == ("scripted", 1000, 0, 2000)
    assert running.expires_s is not None
    assert 290 < running.expires_s <= 300
    client.unload("scripted")
    assert client.running() == []


@pytest.mark.parametrize("call", ["show", "load", "unload"])
def test_an_unknown_model_is_a_sentence_with_the_next_step(live, call):
    with pytest.raises(ModelNotFoundError, match="has no model nope: fetch it with nanollama pull nope"):
        getattr(client_of(live), call)("nope")


def test_the_path_of_a_file_is_not_what_a_server_could_fetch(live):
    with pytest.raises(ModelNotFoundError, match=r"no model \./x\.gguf: without --server a path works too"):
        client_of(live).show("./x.gguf")


def test_an_answer_comes_as_events_whose_last_one_is_their_fold(live):
    body = {"model": "scripted", "prompt": "tokens=4", "options": {"num_predict": 9}}
    *pieces, last = client_of(live).events("/api/generate", body)
    assert [event.text for event in pieces] == list("abcd")
    completion = last.completion
    assert completion.text == "abcd"
    assert completion.token_ids == (*b"abcd", 256)
    assert (completion.finish_reason, completion.prompt_tokens) == ("stop", 8)
    assert (completion.timings.decode_tokens, completion.timings.decode_s) == (4, 0.01)
    assert completion.timings.prefill_s == 0.01


def test_an_answer_that_fails_on_the_way_raises_after_its_text(live):
    events = client_of(live).events("/api/generate", {"model": "scripted", "prompt": "tokens=4 fail=2"})
    assert next(events).text + next(events).text == "ab"
    with pytest.raises(NanollamaError, match="out of blocks"):
        next(events)


def test_closing_the_events_ends_the_answer_on_the_server(live):
    events = client_of(live).events("/api/generate", {"model": "scripted", "prompt": "tokens=9 hang=2"})
    assert next(events).text == "a"
    assert not live.quiet
    events.close()
    assert live.becomes_quiet()


LINE, LAST = {"response": "a", "done": False}, {"response": "", "done": True}


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([chunked(LINE, {"error": "out of memory"})], "out of memory"),
        ([chunked(LINE)], "was cut before its answer ended"),
        ([chunked(LINE, ends=False)], "was cut before its answer ended"),
        ([chunked(LINE, LAST, ends=False)[:-9]], "was cut|is no nanollama server"),
        ([chunked(LINE, ["x"])], "is no nanollama server"),
        ([reply(b"<html>hello</html>")], "is no nanollama server"),
        ([reply(b"[" * 100_000)], "is no nanollama server"),
        ([b"SSH-2.0-OpenSSH\r\n"], "was cut"),
        ([], "was cut"),
    ],
    ids=str,
)
def test_a_stream_that_does_not_end_well_is_a_sentence(pieces, said):
    with answering(*pieces) as client, pytest.raises(NanollamaError, match=said):
        list(client.events("/api/generate", {"model": "m", "prompt": "x"}))


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        ("400 Bad Request", {"error": "bad option"}, UsageError, "^bad option$"),
        ("429 Too Many Requests", {"error": {"message": "queue full"}}, OverloadedError, "^queue full$"),
        ("503 Unavailable", {"error": "server busy"}, OverloadedError, "^server busy$"),
        ("500 Oops", {"error": "it broke"}, NanollamaError, "^it broke$"),
        ("500 Oops", {"error": ["?"]}, NanollamaError, "refused with status 500"),
        ("302 Found", {}, NanollamaError, "refused with status 302"),
        ("404 Not Found", b"<html>", NanollamaError, "is no nanollama server"),
    ],
    ids=str,
)
def test_each_status_is_the_error_that_it_stands_for(status, body, kind, said):
    with answering(reply(body, status)) as client, pytest.raises(kind, match=said) as caught:
        client.load("m")
    assert type(caught.value) is kind


def test_the_counts_of_an_answer_leave_out_what_was_cached():
    last = {"done": True, "done_reason": "length", "prompt_eval_count": 20, "cached_tokens": 16}
    last |= {"eval_count": 3, "dropped_messages": 2, "dropped_tokens": 40}
    with answering(chunked({"message": {"content": "é"}}, last)) as client:
        completion = list(client.events("/api/chat", {"model": "m"}))[-1].completion
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("é", (), "length")
    assert (completion.timings.prefill_tokens, completion.timings.cached_tokens) == (4, 16)
    assert (completion.timings.decode_tokens, completion.prompt_tokens) == (2, 20)
    assert (completion.dropped_messages, completion.dropped_tokens) == (2, 40)


@pytest.mark.parametrize(
    ("ahead", "form", "stays"),
    [
        (timedelta(minutes=5), "{}", 300),
        (timedelta(minutes=-5), "{}", -300),
        (timedelta(days=292 * 365), "{}", None),
        (None, "2026-01-01T00:00:00.123456789Z", -1),
        (None, "soon", None),
    ],
)
def test_the_time_that_a_model_stays_is_counted_from_now(ahead, form, stays):
    text = form if ahead is None else form.format((datetime.now(UTC) + ahead).isoformat())
    with answering(reply({"models": [{"name": "m", "expires_at": text}]})) as client:
        (running,) = client.running()
    if stays is None:
        assert running.expires_s is None
    elif stays == -1:
        assert running.expires_s < 0
    else:
        assert running.expires_s == pytest.approx(stays, abs=30)
