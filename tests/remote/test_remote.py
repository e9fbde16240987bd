"""An image that is elsewhere: each answer that servers give, and starts from a URL."""

import _socket
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.base.windows import WINDOW, count, place
from rootless_udi.fuse.format import WrongWindow
from rootless_udi.fuse.imagefile import ImageFile
from rootless_udi.fuse.reader import Reader
from rootless_udi.fuse.remotefile import opener
from rootless_udi.remote import sources
from rootless_udi.remote.kept import Kept
from rootless_udi.remote.origins import Web
from rootless_udi.remote.ranges import Ranges
from rootless_udi.serve import distant
from rootless_udi.store import windows
from tests.conftest import User
from tests.kit import fuseimages, images
from tests.kit.devlog import devlog
from tests.kit.listed import listed, used
from tests.kit.nodes import Leftovers, counted, together
from tests.kit.rangeserver import RangeServer, serving
from tests.kit.registry import certificate

DATA = fuseimages.noise(3 * WINDOW + 1000)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with serving(DATA) as one:
        yield one


def read(server: RangeServer, at: int, size: int, timeout: float = 20) -> bytes:
    """Read a range after the first, which is answered well."""
    source = Ranges(Web(server.url, timeout), timeout)
    fault, server.fault = server.fault, lambda *_: ""
    assert source.begin(100) == DATA[:100] and source.size == len(DATA)
    server.fault = fault
    return bytes(source.part(at, at + size))


def test_ranges_of_any_size(server: RangeServer) -> None:
    for at, size in ((0, 1), (5, WINDOW), (WINDOW, 2 * WINDOW + 1000), (len(DATA) - 1, 1)):
        assert read(server, at, size) == DATA[at : at + size]
    assert Ranges(Web(server.url, 5), 5).begin(len(DATA) + 5) == DATA


@pytest.mark.parametrize("fault", ("429", "503", "500", "break", "redirect"))
def test_what_passes_is_tried_again(fault: str, server: RangeServer) -> None:
    """Twice the fault, then not; after a break only the rest is asked for."""
    server.fault = lambda number, *_: fault if number in (2, 3) else ""
    assert read(server, 7, 2 * WINDOW) == DATA[7 : 7 + 2 * WINDOW]
    if fault == "break":
        assert [at for at, _ in server.asked[1:]] == [7, 7 + WINDOW, 7 + WINDOW + WINDOW // 2]


def test_a_signature_that_has_expired_is_made_anew(server: RangeServer) -> None:
    faults = iter(("redirect", "expired", "redirect", ""))
    server.fault = lambda number, *_: next(faults) if number > 1 else ""
    assert read(server, 0, WINDOW) == DATA[:WINDOW]
    assert all("Authorization" not in headers for headers in server.headers)


@pytest.mark.parametrize(
    ("fault", "why"),
    (
        ("whole", "it answers the whole file in answer to a range"),
        ("416", "the file there has changed"),
        ("404", "it answers 404"),
        ("403", "it answers 403"),
        ("other range", "it answers bytes 11-20 in answer to 10-19"),
        ("shorter range", "it answers bytes 10-18 in answer to 10-19"),
        ("no range", "a range that nobody understands"),
        ("long", "it answers 14 bytes in answer to 10"),
        ("larger file", "the file there has changed"),
        ("other version", "the file there has changed"),
    ),
)
def test_what_is_not_that_range_of_that_file_is_refused(
    fault: str, why: str, server: RangeServer
) -> None:
    server.fault = lambda *_: fault
    with pytest.raises(UdiError) as caught:
        read(server, 10, 10)
    assert caught.value.message == f"reading {server.url} failed: {why}" or (
        why in caught.value.message and server.url in caught.value.message
    )


@pytest.mark.parametrize("fault", ("hang", "503", "break"))
def test_an_end_within_the_time_that_names_the_source(fault: str, server: RangeServer) -> None:
    server.fault = lambda *_: fault
    with pytest.raises(UdiError, match=rf"reading {server.url} failed: .*\(0.5 s\)"):
        read(server, 10, 1, 0.5)


def test_plain_http_is_for_this_machine_and_who_asks_for_it() -> None:
    with pytest.raises(UdiError, match="nothing proves who answers by plain http"):
        Web("http://name:word@registry.example/x.sqfs?signature=1", 5)
    one = Web("http://name:word@registry.example/x.sqfs?signature=1", 5, insecure=True)
    assert one.shown == "http://registry.example/x.sqfs"


def test_no_window_is_fetched_twice(server: RangeServer, tmp_path: Path) -> None:
    """Many wishes for windows that are also expected: each byte comes once."""
    source = Ranges(Web(server.url, 20), 20)
    source.begin(100)
    server.asked.clear()
    fd = os.open(tmp_path / "kept", os.O_RDWR | os.O_CREAT)
    told: dict[int, str] = {}
    everything = threading.Event()

    def tell(number: int, why: str, _: bytes) -> None:
        told[number] = why
        if len(told) == 4:
            everything.set()

    kept = Kept(source, fd, len(DATA), tell)
    for number in (2, 0, 2, 2, 1):
        assert not kept.want(number)
    kept.expect(((0, len(DATA)), (WINDOW, 10)))
    kept.start()
    assert everything.wait(60) and set(told.values()) == {""}
    assert os.pread(fd, len(DATA), 0) == DATA
    assert sorted(server.asked) == [
        (n * WINDOW, min((n + 1) * WINDOW, len(DATA))) for n in range(4)
    ]
    assert kept.want(3) and not kept.want(99) and told[99]
    os.close(fd)


@pytest.fixture
def exported(user: User, tmp_path: Path) -> Path:
    """A file of several windows that `udi export` wrote."""
    return fuseimages.exported(user, tmp_path, 4 << 20)


RUN = pytest.mark.needs("userns", "fuse", "busybox")


@RUN
def test_a_start_from_a_url(user: User, exported: Path, left: Leftovers) -> None:
    data = exported.read_bytes()
    with serving(data) as server:
        done = user.run("udi-run", server.url, "sh", "-c", "echo $FROM; ls /")
        assert done.returncode == 0 and done.stdout.startswith("afar\n"), done.stderr
        size = place(used(exported))
        came = sum(stop - at for at, stop in server.asked)
        assert came < len(data) - 2 * WINDOW  # of 4 MiB of noise nothing is read
        server.asked.clear()
        done = user.run("udi-run", server.url, "md5sum", "/noise")
        assert done.returncode == 0, done.stderr
        asked = [at // WINDOW for at, stop in server.asked if at < size and stop <= size]
        assert len(asked) == len(set(asked))
        signed = f"{server.url}?signature=secret"
        assert user.run("udi-run", signed, "true").returncode == 0
        server.data = server.data[:WINDOW]
        done = user.run("udi-run", signed, "true")
        assert done.returncode == 125 and "secret" not in done.stderr, done.stderr
        server.data = data
        digest = listed(exported).digest
        assert user.run("udi-run", f"{server.url}#{digest}", "true").returncode == 0
        other = "sha256:" + "0" * 64
        done = user.run("udi-run", f"{server.url}#{other}", "true")
        assert done.returncode == 125 and f"wanted is {other}" in done.stderr
        done = user.run("udi-run", f"{server.url}#sha256:12", "true")
        assert done.returncode == 125 and "is no digest of a list of windows" in done.stderr
        done = user.run("udi-run", "--fuse=squashfuse_ll", server.url, "true")
        assert done.returncode == 125 and "only our own server" in done.stderr
        done = user.run("udi-run", "--pull=never", server.url, "true")
        assert done.returncode == 125 and "--pull=never" in done.stderr
    done = user.run("udi-run", server.url, "true")
    assert done.returncode == 125 and f"reading {server.url} failed: Conn" in done.stderr


@RUN
def test_the_next_start_has_what_was_fetched(user: User, exported: Path) -> None:
    """Also by another URL of the same image, and after a window of it was damaged on the disk."""
    config = user.home / "c.toml"
    config.write_text("[image]\ntimeout = 20\n")
    env = {"UDI_CONFIG": str(config)}
    data = exported.read_bytes()
    windows_in = place(used(exported))
    everything = list(range(count(used(exported))))

    def run(server: RangeServer) -> list[int]:
        server.asked.clear()
        done = user.run("udi-run", server.url, "md5sum", "/noise", env=env)
        assert done.returncode == 0 and done.stdout == right, done.stderr
        return sorted(at // WINDOW for at, _ in server.asked if at < windows_in)

    right = user.run("udi-run", exported, "md5sum", "/noise").stdout
    with serving(data) as server:
        # The last comes with what is behind the squashfs.
        assert run(server) == everything
        # The first window tells which image it is.
        assert run(server) == [0]
    with serving(data) as server:
        assert run(server) == [0]
        kept = next(Path(user.env["UDI_STORE"], "blobs").glob("sha256-*.windows"))
        assert kept.read_bytes() == data and kept.stat().st_mode & 0o777 == 0o600
        with kept.open("r+b", buffering=0) as file:
            file.seek(2 * WINDOW + 5)
            file.write(b"rotten")
        assert run(server) == [0, 2]
        # A journal that says more than there is, and what is no row.
        kept.write_bytes(bytes(len(data)))
        kept.with_suffix(".journal").write_bytes(bytes(range(256)) * 64)
        assert set(run(server)) <= set(everything)
        kept.unlink()
        kept.mkdir()
        assert run(server) == everything
    assert user.run("udi", "prune").returncode == 0


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    """What starts leave behind, which is nothing."""
    with counted(user) as found:
        yield found


@RUN
def test_what_a_start_read_is_asked_for_by_the_next(
    user: User, exported: Path, left: Leftovers
) -> None:
    """Also of an image that is elsewhere, by whatever URL."""
    starts = left.state / "rootless_udi" / "starts"
    script = "for i in $(seq 200); do [ -e /bin/none$i ]; done; md5sum /noise; read x || sleep 3"
    with serving(exported.read_bytes()) as server:
        words = "udi-run", server.url, "sh", "-c", script
        one = user.popen(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        end = time.monotonic() + 60
        while not (starts.exists() and list(starts.glob("[!.]*"))) and time.monotonic() < end:
            time.sleep(0.05)
        one.communicate("\n", timeout=60)
    left.check_processes()
    (kept,) = starts.iterdir()
    with serving(exported.read_bytes()) as server:
        # A start is over, and would be kept, when the image server was not asked for two seconds.
        done = user.run("udi-run", server.url, "sh", "-c", script)
        assert done.returncode == 0, done.stderr
    left.check_processes()
    assert list(starts.iterdir()) == [kept] and b" noise\0" in kept.read_bytes()


def pid_of(left: Leftovers, name: str) -> int:
    return next(pid for pid, words in left.processes().items() if words == name)


@RUN
@pytest.mark.parametrize("fault", ("rot once", "rot", "404", "whole", "hang", "cut"))
def test_a_fault_while_the_command_runs(
    fault: str, user: User, exported: Path, left: Leftovers, tmp_path: Path
) -> None:
    """The reader gets EIO within the time that the site allows, and the container ends. The log has
    a line that names the image, the window and where it came from."""
    config = user.home / "c.toml"
    config.write_text("[image]\ntimeout = 1\n")
    right = user.run("udi-run", exported, "md5sum", "/noise").stdout
    with serving(exported.read_bytes()) as server, devlog(tmp_path / "log") as log:
        words = ("sh", "-c", "echo up; read x; md5sum /noise; echo $?; ls / >/dev/null && echo on")
        one = user.popen(
            *log.words,
            "udi-run",
            server.url,
            *words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"UDI_CONFIG": str(config)},
        )
        assert one.stdout is not None and one.stdout.readline() == "up\n"
        begun = len(server.asked)
        if fault == "cut":
            server.cut()
        elif fault == "rot once":
            server.fault = lambda number, *_: "rot" if number == begun + 1 else ""
        else:
            server.fault = lambda *_: fault
        said, _ = one.communicate("\n", timeout=60)
        if fault == "rot once":
            assert said == f"{right}0\non\n"
            assert any("Cache-Control" in headers for headers in server.headers)
            assert not log.lines
            return
        assert said == "1\non\n"
        line = log.wait(server.url)
        if fault == "rot":
            assert re.search(
                rf"the image is damaged: window (\d) of 1 MiB \(from byte \d+ of {server.url}\) "
                "is not what its list says",
                line,
            )
            assert len(log.lines) == len(set(log.lines))
        else:
            assert f"reading {server.url} failed: " in line


@RUN
def test_the_process_that_fetches_is_killed(user: User, exported: Path, left: Leftovers) -> None:
    with serving(exported.read_bytes()) as server:
        one = user.popen(
            "udi-run",
            server.url,
            *("sh", "-c", "echo up; read x; md5sum /noise; echo $?"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert one.stdout is not None and one.stdout.readline() == "up\n"
        os.kill(pid_of(left, distant.NAME), signal.SIGKILL)
        assert one.communicate("\n", timeout=60)[0] == "1\n"


@RUN
def test_the_image_server_is_killed(user: User, exported: Path, left: Leftovers) -> None:
    """Whoever fetches for it ends too."""
    with serving(exported.read_bytes()) as server:
        one = user.popen(
            "udi-run",
            server.url,
            # What the kernel has not read yet: names and programs it may know still.
            *("sh", "-c", "echo up; read x; md5sum /noise"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert one.stdout is not None and one.stdout.readline() == "up\n"
        os.kill(pid_of(left, "udi-image"), signal.SIGKILL)
        one.communicate("\n", timeout=60)
        assert one.returncode


@RUN
def test_64_ranks_at_once_on_nothing_local(user: User, exported: Path) -> None:
    """They share a container, and with it who fetches: each window comes once."""
    size = place(used(exported))
    with serving(exported.read_bytes()) as server:
        together(user, 64, "udi-run", "--share=remote", server.url)
        asked = [at // WINDOW for at, stop in server.asked if stop <= size]
        assert len(asked) == len(set(asked))


@RUN
@pytest.mark.needs("registry")
def test_tls_with_a_ca_of_the_site(user: User, exported: Path, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "site")
    with serving(exported.read_bytes(), (cert, key)) as server:
        done = user.run("udi-run", server.url, "true")
        assert done.returncode == 125, done.stderr
        assert f"reading {server.url} failed: its TLS certificate is not trusted" in done.stderr
        done = user.run("udi-run", server.url, "true", env={"SSL_CERT_FILE": str(cert)})
        assert done.returncode == 0, done.stderr
        assert user.run("udi-run", "--insecure", server.url, "true").returncode == 0


@RUN
@pytest.mark.needs("mksquashfs")
def test_each_window_flipped_on_the_way(tmp_path: Path) -> None:
    """The same as of a local file: what is read is right, or it is an error."""
    path = fuseimages.mksquashfs(images.tar([("f", DATA, {})]), tmp_path / "i", "-comp", "gzip")
    with path.open("r+b", buffering=0) as file:
        known = windows.append(file.fileno())
    data = path.read_bytes()
    for bad in range(1, len(known.sums) // 32):
        with serving(data) as server:
            # From the first request on: windows are fetched ahead.
            server.fault = rotten(bad)
            one = distant.opened(server.url, 20, False)
            assert isinstance(one, distant.Distant)
            source = reader(one.file, one.sock, server.url)
            for number in range(len(known.sums) // 32):
                if number == bad:
                    where = f"from byte {bad * WINDOW} of {server.url}"
                    with pytest.raises(WrongWindow, match=where):
                        source.read(number * WINDOW, 10)
                else:
                    at = number * WINDOW
                    assert source.read(at, 10) == data[at : at + 10]
            os.close(one.file)
            del source


def rotten(bad: int) -> Callable[[int, int, int], str]:
    return lambda _, at, stop: "rot" if at <= bad * WINDOW < stop else ""


def reader(fd: int, sock: "_socket.socket", url: str) -> ImageFile:
    return Reader(fd, url, opener=opener(sock.detach(), url, 20, True, "")).source


@pytest.mark.parametrize("used", (5000, 8192, WINDOW, WINDOW + 1, 5 * WINDOW + 7))
@pytest.mark.parametrize("kept", (False, True))
def test_what_comes_with_the_end(used: int, kept: bool, tmp_path: Path) -> None:
    """The last windows and what is behind the squashfs, whose sizes do not fit together; nothing
    but the latter where the store has windows of a file of that size."""
    data = os.urandom(used) + bytes(place(used) - used) + b"what is behind it"
    (tmp_path / "blobs").mkdir()
    if kept:
        with (tmp_path / "blobs/x.windows").open("wb") as file:
            file.truncate(len(data))
    with serving(data) as server:
        ranges = Ranges(Web(server.url, 20), 20)
        head = ranges.begin(WINDOW)
        last, tail = sources.end(ranges, head, used, str(tmp_path))
    assert bytes(tail) == b"what is behind it"
    # Where the tables are nobody can say here.
    wanted = 0 if kept or used <= WINDOW else used - (used - 1) // WINDOW * WINDOW
    assert bytes(last) == (data[used - wanted : used] if wanted else b"")


@RUN
def test_what_is_no_image_or_has_no_list(user: User, exported: Path) -> None:
    with serving(b"<html>" * 10000) as server:
        done = user.run("udi-run", server.url, "true")
        assert done.returncode == 125 and f"image {server.url} is no squashfs file" in done.stderr
    data = exported.read_bytes()
    with serving(data[: 2 * WINDOW]) as server:
        done = user.run("udi-run", server.url, "true")
        assert done.returncode == 125 and "is no whole squashfs file" in done.stderr
    with serving(data[: place(used(exported))]) as server:
        done = user.run("udi-run", server.url, "true")
        assert done.returncode == 125 and "it has no list of its windows" in done.stderr
        config = user.home / "c.toml"
        config.write_text('[image]\nverify = "never"\n')
        done = user.run("udi-run", server.url, "true", env={"UDI_CONFIG": str(config)})
        assert done.returncode == 0, done.stderr


@RUN
def test_where_no_file_can_be_made(user: User, exported: Path) -> None:
    """Without a store, and with a TMPDIR that is none, the windows are in memory."""
    env = {"UDI_STORE": f"{user.home}/none", "TMPDIR": "/proc/nowhere"}
    with serving(exported.read_bytes()) as server:
        done = user.run("udi-run", server.url, "md5sum", "/noise", env=env)
        assert done.returncode == 0, done.stderr
        assert user.run("udi-run", exported, "md5sum", "/noise").stdout == done.stdout


@RUN
def test_a_caller_that_ignores_its_children(user: User, exported: Path) -> None:
    with serving(exported.read_bytes()) as server:
        done = user.run("sh", "-c", f"trap '' CHLD; exec udi-run {server.url} echo on")
        assert (done.returncode, done.stdout) == (0, "on\n"), done.stderr


@RUN
def test_a_limit_of_file_sizes(user: User, exported: Path) -> None:
    """It stands for a full disk: the start fails with a line, or the reader gets EIO."""
    with serving(exported.read_bytes()) as server:
        done = user.run("sh", "-c", f"ulimit -f 1000; exec udi-run {server.url} true")
        assert done.returncode == 125 and "File too large" in done.stderr, done.stderr
