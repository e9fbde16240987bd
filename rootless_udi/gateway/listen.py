"""Where the gateway listens: "unix:/PATH", or ADDRESS:PORT of loopback."""

import contextlib
import ipaddress
import os
import socket
import stat

from rootless_udi.base.errors import UdiError, disk_hint
from rootless_udi.base.records import Record

SOCKET = "gateway.socket"
"""The Unix socket's name in the store, where no other is given."""
_BACKLOG = 1024
_PATH_MAX = 107
"""Most bytes of a Unix socket's path (unix(7))."""


class Address(Record):
    """An address to listen on: the path of a Unix socket, or host and port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return (
            f"http://[{self.host}]:{self.port}"
            if ":" in self.host
            else f"http://{self.host}:{self.port}"
        )


def parsed(text: str) -> Address:
    """Return what --listen means. Raises UdiError, also for an address that others can reach."""
    if text.startswith(("unix:", "/")):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or len(os.fsencode(path)) > _PATH_MAX:
            raise UdiError(
                f"--listen={text}: is no absolute path of at most {_PATH_MAX} bytes",
                "the kernel allows no longer path for a socket: unix:/run/user/1000/gateway.socket",
            )
        return Address(path=path)
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise UdiError(
            f"--listen={text}: is no address", "unix:/PATH, 127.0.0.1:PORT or [::1]:PORT"
        )
    try:
        loopback = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback
    except ValueError:
        raise UdiError(f"--listen={text}: {host!r} is no IP address", "127.0.0.1:PORT") from None
    if not loopback:
        raise UdiError(
            f"--listen={text}: others could read what is sent there",
            "listen on loopback, and have a web server with TLS stand in front of it",
        )
    return Address(host="127.0.0.1" if host == "localhost" else host, port=int(port))


def opened(address: Address) -> socket.socket:
    """Return a listening socket. Raises UdiError.

    Everybody may connect to a Unix socket; the kernel says who did. It appears by rename(2), in
    place of what a gateway that was killed left there.
    """
    try:
        if not address.path:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            one = socket.socket(family, socket.SOCK_STREAM)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((address.host, address.port))
        else:
            one = _unix(address.path)
        one.listen(_BACKLOG)
    except OSError as error:
        raise UdiError(
            f"listening on {address} failed: {os.strerror(error.errno or 0)}",
            disk_hint(error.errno, "--listen gives another address"),
        ) from None
    return one


def _unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(17, "File exists", path)
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name[:20]}.{os.getpid()}"
    if len(os.fsencode(temporary)) > _PATH_MAX:
        temporary = path
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    one.bind(temporary)
    os.chmod(temporary, 0o666)
    if temporary != path:
        os.rename(temporary, path)
    return one
