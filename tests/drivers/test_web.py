"""Answers that are not HTTP as it should be."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from registry_drivers.errors import TooLarge, Unavailable
from registry_drivers.web import Web


@contextmanager
def answering(text: bytes) -> Iterator[str]:
    """The address of a server that says *text* to whoever comes, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            place, _ = server.accept()
            with place:
                place.recv(65536)
                place.sendall(text)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a"
        thread.join()


@pytest.mark.parametrize("length", [b"abc", b"-3", b"0x5", b"5; 5"])
def test_an_answer_of_an_unknown_length_is_worth_another_try(length: bytes) -> None:
    text = b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\nhello"
    with answering(text) as url, closing(Web()) as web, pytest.raises(Unavailable):
        web.send("GET", url, {}, limit=100)


def test_an_answer_that_says_nothing_of_its_length_is_read_up_to_the_limit() -> None:
    text = b"HTTP/1.1 200 OK\r\n\r\nhello"
    with answering(text) as url, closing(Web()) as web:
        assert web.send("GET", url, {}, limit=5).data == b"hello"
    with answering(text) as url, closing(Web()) as web, pytest.raises(TooLarge):
        web.send("GET", url, {}, limit=4)
