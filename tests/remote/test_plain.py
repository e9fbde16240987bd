"""Ranges by plain HTTP without http.client: what it takes, and what it leaves to `pull.http`."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.base.windows import WINDOW
from rootless_udi.remote.origins import Web
from rootless_udi.remote.plain import usual
from rootless_udi.remote.ranges import Ranges
from tests.kit import fuseimages
from tests.kit.places import TREE
from tests.kit.rangeserver import serving

DATA = fuseimages.noise(2 * WINDOW + 1000)


@pytest.mark.parametrize(
    ("url", "insecure", "taken"),
    (
        ("http://127.0.0.1:8000/a/b.sqfs?x=1", False, True),
        ("http://localhost/a", False, True),
        ("http://other.example/a", False, False),  # nothing proves who answers
        ("http://other.example/a", True, True),
        ("https://127.0.0.1/a", True, False),
        ("http://name:word@127.0.0.1/a", True, False),
        ("http://127.0.0.1:0/a", True, False),
        ("http://127.0.0.1:99999/a", True, False),
        ("http://[::1]/a", True, False),
        ("http://127.0.0.1/a b", True, False),
        ("http://127.0.0.1/\u00e4", True, False),
        ("http://127.0.0.1/a\r\nHost: other", True, False),
        ("http://127.0.0.1", True, False),
    ),
)
def test_which_urls_are_usual(url: str, insecure: bool, taken: bool) -> None:
    assert (usual(url, insecure, 5, ()) is not None) == taken


def test_a_proxy_is_left_to_who_knows_them() -> None:
    assert usual("http://other.example/a", True, 5, ("HTTP_PROXY",)) is None
    assert usual("http://127.0.0.1/a", True, 5, ("http_proxy",)) is not None


def test_a_connection_is_kept_and_one_that_the_server_closed_is_opened_anew() -> None:
    with serving(DATA) as server:
        one = Ranges(Web(server.url, 5), 5)
        assert one.begin(len(DATA)) == DATA and one.part(7, WINDOW) == DATA[7:WINDOW]
        (kept,) = server.open
        kept.shutdown(socket.SHUT_RDWR)
        assert one.part(7, WINDOW) == DATA[7:WINDOW]
        assert one.requests == 3 and len(server.asked) == 3


@contextmanager
def saying(*answers: bytes) -> Iterator[str]:
    """Yield the URL of a server that says these answers, each to one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for answer in answers:
                with listening.accept()[0] as one:
                    one.recv(4096)
                    one.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/image"
        thread.join()


RIGHT = (
    b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-3/4\r\nContent-Length: 4\r\n\r\ndata"
)
CHUNKED = (
    b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-3/4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n0\r\n\r\n"
)


@pytest.mark.parametrize(
    "unusual",
    (
        b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\n folded\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\nname : x\r\n\r\n",
        b"SSH-2.0-server\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\n" + b"X: y\r\n" * 8000 + b"\r\n",
        CHUNKED,
    ),
)
def test_what_is_unusual_is_asked_for_by_http_client(unusual: bytes) -> None:
    """Once more, by a connection of its own, which may be answered in each way of HTTP."""
    with saying(unusual, CHUNKED) as url:
        assert bytes(Ranges(Web(url, 5), 5).begin(4)) == b"data"


def test_an_old_server_and_one_that_says_more_than_it_announced() -> None:
    """Their connections are not used again: the next answer would begin with the rest."""
    old = RIGHT.replace(b"HTTP/1.1", b"HTTP/1.0")
    closing = RIGHT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with saying(old, closing, RIGHT + b"more", RIGHT) as url:
        one = Ranges(Web(url, 5), 5)
        assert [bytes(one.part(0, 4)) for _ in range(4)] == [b"data"] * 4


def test_a_server_that_comes_back_is_asked_again() -> None:
    with saying(b"", b"", RIGHT) as url:
        assert bytes(Ranges(Web(url, 20), 20).begin(4)) == b"data"


def test_no_server_and_no_such_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        url = f"http://127.0.0.1:{one.getsockname()[1]}/a"
    with pytest.raises(UdiError, match="Connection refused"):
        Ranges(Web(url, 5), 5).begin(4)


def test_a_start_by_url_loads_no_http_client() -> None:
    """It would wait for it."""
    with serving(DATA) as server:
        code = (
            f"import sys; sys.path.insert(0, {str(TREE)!r}); import rootless_udi.remote.process\n"
            "from rootless_udi.remote.origins import Web\n"
            "from rootless_udi.remote.ranges import Ranges\n"
            f"assert len(Ranges(Web({server.url!r}, 5), 5).begin(100)) == 100\n"
            "print(*sorted({'http', 'ssl', 'socket', 'email', 'urllib', 'typing', 'threading', "
            "'re', 'json'} & set(sys.modules)))"
        )
        argv = [sys.executable, "-I", "-S", "-c", code]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
