"""A registry whose answers are anything, at every step of a pull: exit 125 and a clean line.

`step` is what is asked for; its answer is replaced by bytes: a status line, headers and a body that
no server should send. Nothing may be a traceback, and no terminal obey what is said.
"""

import hashlib
import json
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rootless_udi.base.process import guarded
from rootless_udi.commands.common.progress import Lines
from rootless_udi.plan import reference
from rootless_udi.pull.manifest import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from rootless_udi.pull.pipeline import Options, pull_sync
from rootless_udi.pull.retry import Patience
from rootless_udi.store.store import Store
from tests.kit import images
from tests.kit.pulling import HERE

pytestmark = pytest.mark.needs("mksquashfs")

QUICK = Patience(attempts=2, first=0.001, longest=0.002)
ESC = "\x1b]0;owned\x07\x9b31m[/x]"
STEPS = ("ping", "token", "manifest", "config", "layer")


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(media: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media, "digest": digest(data), "size": len(data)}


LAYER = images.tar([("etc", None, {})])


def config(**more: object) -> bytes:
    known = {"architecture": HERE.architecture, "os": "linux", "config": {}}
    known["rootfs"] = {"type": "layers", "diff_ids": [digest(LAYER)]}
    return json.dumps({**known, **more}).encode()


def manifest(body: bytes, **more: object) -> bytes:
    known: dict[str, object] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST}
    known["config"] = descriptor(OCI_CONFIG, body)
    known["layers"] = [descriptor(OCI_LAYER, LAYER)]
    return json.dumps({**known, **more}).encode()


def answer(status: str = "200 OK", body: bytes = b"", *heads: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *heads, f"Content-Length: {len(body)}", "Connection: close"]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1", "replace") + b"\r\n" + body


class Hostile:
    """A registry with tokens; `evil` maps steps to whole answers."""

    def __init__(self) -> None:
        self.evil: dict[str, bytes] = {}
        self.config = config()
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                try:
                    if self.connection.recv(1, socket.MSG_PEEK) == b"\x16":
                        return  # TLS: a registry on this machine is tried with it too
                    line = self.rfile.readline(1 << 16).decode("latin-1")
                    given = ""
                    while (head := self.rfile.readline(1 << 16)) not in (b"\r\n", b""):
                        if head.lower().startswith(b"authorization:"):
                            given = head.decode("latin-1")
                    self.wfile.write(outer.answer([*line.split(" "), ""][1], given))
                except OSError:
                    pass  # who was answered too much has gone

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, path: str, given: str) -> bytes:
        manifests, blob = "/manifests/" in path, path.rpartition("/")[2]
        step = "ping" if path == "/v2/" else "token" if path.startswith("/token") else "layer"
        if manifests:
            step = "manifest"
        elif blob == digest(self.config):
            step = "config"
        if step in self.evil:
            return self.evil[step]
        if step == "token":
            return answer("200 OK", b'{"token": "good"}')
        if "good" not in given:
            asked = f'WWW-Authenticate: Bearer realm="http://{self.host}/token",service="s"'
            return answer("401 Unauthorized", b"", asked)
        bodies = {"ping": b"", "manifest": manifest(self.config), "config": self.config}
        return answer("200 OK", bodies.get(step, LAYER), "Content-Type: " + OCI_MANIFEST)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    one = Hostile()
    yield one
    one.close()


def attempt(hostile: Hostile, root: Path, capture: pytest.CaptureFixture[bytes]) -> int:
    """Pull as the command does; whatever is said must be clean, and the error one line."""

    def body() -> int:
        options = Options(patience=QUICK, force=True)
        pull_sync(reference.parse(f"{hostile.host}/x:1"), Store(str(root)), options, Lines())
        return 0

    capture.readouterr()
    status = guarded("udi", body)
    said = capture.readouterr().err.decode()
    assert status in (0, 125), said
    lines = said.removesuffix("\n").split("\n") if said else []
    assert all(line.isprintable() and len(line) < 10_000 for line in lines), said
    ours = [line for line in lines if line.startswith("udi: ")]
    errors = [line for line in ours if not line.startswith("udi: hint: ")]
    assert len(errors) == (status != 0), said
    assert all(
        re.match(
            r"(udi: |note: |resolving |fetching |layer |merging |putting |sha256:)|.* is "
            r"in the store",
            line,
        )
        for line in lines
    ), said
    return status


def error(message: object, code: object = "CODE") -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


DEEP = b"[" * 200_000
ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "no HTTP": f"HTTX {ESC}hello\r\n\r\n".encode("latin-1"),
    "an escape as status": f"{ESC}\r\n\r\n".encode("latin-1"),
    "HTTP/9.9": b"HTTP/9.9 200 OK\r\n\r\n",
    "no end of the head": b"HTTP/1.1 200 OK\r\nA: b",
    "a status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    **{f"status {s}": answer(f"{s} {ESC}") for s in (100, 204, 304, 400, 402, 404, 418, 599, 999)},
    "2,000 headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
    "a long header": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 200_000 + b"\r\n\r\n",
    "a header of bytes": b"HTTP/1.1 200 OK\r\n\xff\xfe: \x00\r\nContent-Type: \x1b\r\n\r\n{}",
    **{
        f"length {name}": b"HTTP/1.1 200 OK\r\nContent-Length: " + value + b"\r\n\r\nabc"
        for name, value in {
            "5,000 digits": b"9" * 5000,
            "30 digits": b"9" * 30,
            "negative": b"-1",
            "letters": b"\x1b[31m",
            "other digits": "٣".encode(),
            "twice": b"3\r\nContent-Length: 4",
        }.items()
    },
    **{
        f"chunk {name}": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + value
        for name, value in {
            "letters": b"zz\r\n",
            "negative": b"-5\r\nabc",
            "huge": b"f" * 20 + b"\r\nabc",
            "no end": b"3\r\nabc",
            "trailers": b"0\r\n" + b"A: b\r\n" * 300,
        }.items()
    },
    **{
        f"redirect {where[:20]!r}": answer("307 x", b"", f"Location: {where}")
        for where in (
            "file:///etc/passwd",
            f"http://127.0.0.1:9/{ESC}",
            "http://127.0.0.1:abc/",
            "http://[::1/",
            "http://" + "a" * 70 + ".x/",
            "http://é\xff.x/",
            "http://127.0.0.1:99999999/",
            "//",
            "?",
            "http://\t/",
            "javascript:x",
            "http://user:pw@127.0.0.1:9/",
        )
    },
    **{
        f"retry {when[:30]}": answer("503 x", b"", f"Retry-After: {when}")
        for when in (
            "Mon, 01 Jan 0001 00:00:00 -0000",
            "9" * 5000,
            "Mon, 01 Jan 2030 00:00:00 +99999999999",
            ESC,
            "-1",
            "Mon, 01 Jan 9999 00:00:00 -2359",
        )
    },
    **{
        f"challenge {number}": answer("401 x", b"", f"WWW-Authenticate: {value}")
        for number, value in enumerate(
            (
                f'Bearer realm="http://127.0.0.1:9/{ESC}",service="{ESC}"',
                f'Digest realm="{ESC}"',
                f"{ESC}",
                'Bearer realm="http://127.0.0.1:99999999/"',
                'Bearer realm="file:///etc/passwd"',
                "Bearer realm=",
                'Bearer realm="http://127.0.0.1:9/a b\tc"',
                "Bearer " + "a=b," * 10_000,
                '"' * 5000,
                "Basic",
                'Bearer realm="http://é/"',
                'Bearer realm="/relative"',
            )
        )
    },
    **{
        f"error {number} of {status}": answer(f"{status} x", body)
        for status in (403, 429, 500)
        for number, body in enumerate(
            (
                DEEP,
                b'{"errors":' + DEEP[:60_000],
                error(ESC, ESC),
                error("\u202egnp [bold]x[/nope] [link=http://e]"),
                error("a\nudi: hint: run this"),
                error("\ud800"),
                error([DEEP.decode()[:900]]),
                error(5, []),
                error("x" * 50_000),
                b"\xff" * 99,
                b'{"errors": {}}',
                b'{"errors": [null]}',
                b"1" * 60_000,
            )
        )
    },
    **{
        f"body {number}": answer("200 OK", body, f"Content-Type: {media}")
        for media in (OCI_MANIFEST, ESC)
        for number, body in enumerate(
            (
                DEEP,
                b'{"a":' * 200_000,
                b'{"schemaVersion":' + b"2" * 100_000 + b"}",
                b" " * (5 << 20),
                b"[]",
                b"null",
                b'{"token": "a\\u0100"}',
                b'{"token": "a", "expires_in": 1' + b"0" * 400 + b"}",
                b'{"token": [' + DEEP,
                b'{"token": "a", "expires_in": NaN}',
                b'{"token": "a", "expires_in": -1e999}',
                b'{"token": "good\\nX: y"}',
                b'{"schemaVersion": 2, "mediaType": "\\ud800\\u001b"}',
                "{}".encode("utf-16"),
                b"\xef\xbb\xbf{}",
                b'{"schemaVersion": ' + b"[" * 900 + b"]" * 900 + b"}",
            )
        )
    },
    "gzip in a gzip": answer("200 OK", LAYER, "Content-Encoding: gzip"),
}


def odd_documents() -> dict[str, tuple[bytes, bytes]]:
    """Manifest and config whose digests are right and whose words are not."""
    found = {}
    configs: dict[str, dict[str, object]] = {
        "arch": {"architecture": ESC},
        "os": {"os": ESC},
        "variant": {"variant": ESC},
        "numbers": {"os": 5},
        "env": {"config": {"Env": [1, ESC]}},
        "labels": {"config": {"Labels": {ESC: 5}}},
        "deep": {"config": 5},
        "half": {"config": {"Env": ["A=\ud800"], "User": "\ud800", "Cmd": ["\ud800"]}},
        "cmd": {"config": {"Cmd": {}}},
        "nul": {"config": {"WorkingDir": "\0"}},
        "ids": {"rootfs": {"diff_ids": [ESC]}},
        "time": {"created": [ESC]},
    }
    for name, more in configs.items():
        body = config(**more)
        found[f"config {name}"] = manifest(body), body
    deep = b'{"a":' * 200_000
    found["config of depth"] = manifest(deep), deep
    good = config()
    nested: object = "x"
    for _ in range(800):
        nested = [nested]
    layer = {"mediaType": OCI_LAYER, "digest": digest(LAYER), "size": len(LAYER)}
    layers: dict[str, dict[str, object]] = {
        "short": {"digest": "sha256:" + "b" * 63},
        "upper": {"digest": "sha256:" + "B" * 64},
        "md5": {"digest": "md5:b"},
        "path": {"digest": "sha256:../../../etc/passwd"},
        "media": {"mediaType": ESC},
        "float": {"size": 3.0},
        "huge": {"size": 1 << 61},
        "nested": {"size": nested},
        "nested digest": {"digest": nested},
        "none": {"size": None},
        "long": {"mediaType": "x" * (1 << 20)},
        "negative": {"size": -1},
        "digits": {"size": 10**4000},
    }
    for name, value in layers.items():
        found[f"layer {name}"] = manifest(good, layers=[{**layer, **value}]), good
    found["20,000 layers"] = manifest(good, layers=[layer] * 20_000), good
    entry = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "a" * 64, "size": 3}
    for name, platform in {
        "platform": {"os": ESC, "architecture": "x\ny"},
        "platforms": [ESC],
        "nested": {"os": nested},
        "text": ESC,
    }.items():
        index = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [{**entry, "platform": platform}],
        }
        found[f"index {name}"] = json.dumps(index).encode(), good
    for name, word in {"media": ESC, "version": nested, "list": [], "layers": {}}.items():
        key = {"media": "mediaType", "version": "schemaVersion", "list": "config"}.get(
            name, "layers"
        )
        found[f"manifest {name}"] = manifest(good, **{key: word}), good
    return found


@pytest.mark.parametrize("step", STEPS)
def test_any_answer_at_any_step(
    hostile: Hostile, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], step: str
) -> None:
    hostile.config = config()
    for name, body in ANSWERS.items():
        hostile.evil = {step: body}
        try:
            attempt(hostile, tmp_path / "store", capfdbinary)
        except BaseException as wrong:
            raise AssertionError(f"{step}: {name}: {wrong!r}") from wrong


@pytest.mark.parametrize("name", odd_documents())
def test_odd_documents(
    hostile: Hostile, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], name: str
) -> None:
    head, hostile.config = odd_documents()[name]
    media = OCI_INDEX if name.startswith("index") else OCI_MANIFEST
    hostile.evil = {"manifest": answer("200 OK", head, f"Content-Type: {media}")}
    status = attempt(hostile, tmp_path / "store", capfdbinary)
    assert status == 125 or name in ("config half", "config variant", "config env", "config arch")


def test_an_honest_registry_is_pulled_from(
    hostile: Hostile, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Else all the others would fail for another reason."""
    hostile.config, hostile.evil = config(), {}
    assert attempt(hostile, tmp_path / "store", capfdbinary) == 0


FRAGMENTS = st.sampled_from(
    [
        b"HTTP/1.1 ",
        b"200 OK",
        b"401 x",
        b"307 x",
        b"\r\n",
        b"\r\n\r\n",
        b"Content-Length: ",
        b"9",
        b"-",
        b"{",
        b'"',
        b"Transfer-Encoding: chunked",
        b"Location: ",
        b"http://",
        b"WWW-Authenticate: ",
        b"Bearer realm=",
        b"errors",
        b"[",
        b"]",
        b"}",
        b":",
        b"token",
        b"\x1b[31m",
        b"\x00",
        b"\xff",
        b"mediaType",
        b"Retry-After: ",
        b"\\ud800",
    ]
)


LENIENT = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.alike
@settings(max_examples=150, suppress_health_check=LENIENT)
@given(step=st.sampled_from(STEPS), parts=st.lists(FRAGMENTS, max_size=25), head=st.booleans())
def test_fuzzed_answers(
    hostile: Hostile,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    step: str,
    parts: list[bytes],
    head: bool,
) -> None:
    body = b"".join(parts)
    hostile.config = config()
    hostile.evil = {step: answer("200 OK", body) if head else body}
    attempt(hostile, tmp_path / "store", capfdbinary)
