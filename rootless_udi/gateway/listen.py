"""Where the gateway listens: "unix:/PATH", ADDRESS:PORT of loopback, "https://ADDRESS:PORT"."""

import contextlib
import errno
import ipaddress
import os
import socket
import ssl
import stat

from rootless_udi.base.errors import UdiError, disk_hint
from rootless_udi.base.process import complain
from rootless_udi.base.records import Record

SOCKET = "gateway.socket"
"""The Unix socket's name in the store, where no other is given."""
_BACKLOG = 1024
_PATH_MAX = 107
"""Most bytes of a Unix socket's path (unix(7))."""


class Address(Record):
    """An address to listen on: the path of a Unix socket, or host and port, perhaps with TLS."""

    path: str = ""
    host: str = ""
    port: int = 0
    secure: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}"


class Certificate(Record):
    """The files that TLS needs, as PEM: the certificate with those that lead to its issuer, and its
    key ("" where that is in the same file)."""

    chain: str
    key: str = ""

    def load(self, context: ssl.SSLContext) -> None:
        """Have new connections get what is in the files now. Raises UdiError."""
        try:
            # Nobody is there to type one.
            context.load_cert_chain(self.chain, self.key or None, password=lambda: "")
        except (OSError, ValueError) as error:
            files = " and ".join(filter(None, (self.chain, self.key)))
            # OpenSSL's own errors have their text in the whole alone.
            own = isinstance(error, ssl.SSLError) or not isinstance(error, OSError)
            why = error if own else os.strerror(getattr(error, "errno", 0) or 0)
            raise UdiError(
                f"the certificate of --certificate and --key can't be used: {files}: {why}",
                "a certificate and its key without a password, as PEM, which this account can read",
            ) from None


class Listener:
    """A listening socket, and how its connections are encrypted."""

    def __init__(self, address: Address, certificate: Certificate | None = None) -> None:
        self.secure: ssl.SSLContext | None = None
        self._certificate = certificate
        if address.secure:
            if certificate is None:
                raise UdiError(
                    f"--listen={address}: there is no certificate for it",
                    "--certificate=FILE.pem --key=FILE.pem",
                )
            self.secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.secure.set_alpn_protocols(["http/1.1"])
            certificate.load(self.secure)
        self.socket = opened(address)
        port = 0 if address.path else int(self.socket.getsockname()[1])
        self.address = address.replace(port=port)

    def load_again(self) -> None:
        """Have new connections get the certificate that is in its files now; the old one where that
        is none."""
        if self.secure is None or self._certificate is None:
            return
        try:
            # What is half of a pair must not be in force: it is tried first.
            self._certificate.load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
            self._certificate.load(self.secure)
        except UdiError as error:
            complain("udi gateway", error.message, "the one before is still used")


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
    secure = text.startswith("https://")
    host, colon, port = text.removeprefix("https://").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise UdiError(
            f"--listen={text}: is no address",
            "unix:/PATH, 127.0.0.1:PORT, [::1]:PORT or https://ADDRESS:PORT",
        )
    host = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise UdiError(f"--listen={text}: {host!r} is no IP address", "127.0.0.1:PORT") from None
    if not loopback and not secure:
        raise UdiError(
            f"--listen={text}: others could read what is sent there",
            f"--listen=https://{text} with --certificate and --key; or loopback, and a web server "
            "with TLS in front of it",
        )
    return Address(host=host, port=int(port), secure=secure)


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


def remove_socket(path: str) -> None:
    """Remove a socket that a gateway left at `path`. Raises OSError, also for another file."""
    with contextlib.suppress(FileNotFoundError):
        _check(path)
        os.unlink(path)


def _check(path: str) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def _unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        _check(path)
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
