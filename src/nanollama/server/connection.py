"""One connection: uvicorn's protocol, with an end to the time that a request may take to arrive.

What goes wrong before the application has a say is told in OpenAI's form as well.
"""

import asyncio
import contextlib
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanollama.server.gate import UPLOADS
from nanollama.server.problems import Problem, unavailable
from nanollama.server.settings import Limits
from nanollama.server.wire import spelled


class Connection(H11Protocol):
    """One connection. ``abort`` in the state of its requests closes it without waiting for its reader."""

    limits: ClassVar[Limits]
    arrival: asyncio.TimerHandle | None = None
    awaited = ""
    ended = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        self._expect("headers", self.limits.header_s)
        if len(self.connections) > self.limits.connections:
            self._say(
                unavailable("Too many connections are open; try again later.", "too_many_connections", 5)
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect("", 0)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.transport.is_closing():
            self._expect("", 0)
        elif self.conn.their_state is h11.SEND_BODY:
            if self.scope is not None and self.scope["path"].startswith(UPLOADS):
                self._expect("", 0)  # a file may take its time, as long as something comes
            self._expect("body", self.limits.body_s)
        elif self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._expect("headers", self.limits.header_s)
        else:
            self._expect("", 0)

    def _expect(self, what: str, seconds: float) -> None:
        """Start the clock for one part of a request, if it isn't running for that part already."""
        if what == self.awaited:
            return
        self.awaited = what
        if self.arrival is not None:
            self.arrival.cancel()
        self.arrival = self.loop.call_later(seconds, self._too_slow) if what else None

    def _too_slow(self) -> None:
        problem = Problem(408, f"The {self.awaited} of the request took too long.", "request_timeout")
        self._say(problem)

    def send_400_response(self, msg: str) -> None:
        self._say(Problem(400, "The request is not valid HTTP.", "invalid_http"))

    def data_received(self, data: bytes) -> None:
        if not self.ended:
            super().data_received(data)

    def _say(self, problem: Problem) -> None:
        """A refusal before, or instead of, the application's."""
        body = spelled(problem.body())
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        headers |= problem.headers()
        response = h11.Response(status_code=problem.status, headers=list(headers.items()))
        with contextlib.suppress(h11.LocalProtocolError):  # an answer has begun
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self._end()

    def _end(self) -> None:
        """Close, but read on for a while: closing with unread data would take the answer back."""
        self.ended = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write_eof()
        self.loop.call_later(self.limits.linger_s, self.transport.close)


def connections(limits: Limits) -> type[Connection]:
    """The class of connections that keep to ``limits``; uvicorn makes one for each."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
