"""A server that the tests of one file share, and OpenAI's client of it."""

import pytest

from server.worlds import LiveServer


@pytest.fixture(scope="module")
def live():
    """A server that the tests of a file share."""
    with LiveServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(live):
    """OpenAI's own client of that server."""
    with live.openai() as client:
        yield client
