"""Log in to a registry and out: credentials are tried, then kept in containers-auth.json(5)."""

import base64
import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from typing import Any

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError, disk_hint
from rootless_udi.plan.reference import DOCKER_HUB, parse
from rootless_udi.pull import credentials
from rootless_udi.pull.credentials import Credentials
from rootless_udi.pull.http import Transport
from rootless_udi.pull.registry import Endpoint
from rootless_udi.pull.retry import Patience
from rootless_udi.pull.stop import Stop


def registry_name(text: str) -> str:
    """Return HOST[:PORT] as references have it; raises UdiError for what is none."""
    bare = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    if bare in ("", "index.docker.io/v1"):
        return DOCKER_HUB
    found = parse(f"docker://{bare}/x")
    if found.repository not in ("x", "library/x") or bare == "library":
        raise UdiError(f"registry {text!r}: is not of the form HOST[:PORT]")
    return found.registry


def auth_file(environ: Mapping[str, str]) -> str:
    """Return the file that logins are written to.

    That is $REGISTRY_AUTH_FILE; else the one in $XDG_RUNTIME_DIR if it exists, since it is read
    first; else the one in ~/.config, which is still there after the session. Raises UdiError
    without HOME.
    """
    if environ.get("REGISTRY_AUTH_FILE"):
        return environ["REGISTRY_AUTH_FILE"]
    known = [path for path in credentials.files(environ) if path.endswith("/containers/auth.json")]
    for path in known:
        if os.path.exists(path):
            return path
    if not known:
        raise UdiError("no place for credentials: HOME is not set", "set REGISTRY_AUTH_FILE")
    return known[-1]


def login(
    registry: str,
    username: str,
    password: str,
    environ: Mapping[str, str],
    insecure: bool = False,
    patience: Patience | None = None,
) -> str:
    """Try the credentials at `registry` (HOST[:PORT]) and keep them; return the file's path.

    Raises UdiError where the registry refuses them, the file cannot be written, or others than the
    caller and root could have written it or a link to it.
    """
    if not username or ":" in username:
        raise UdiError(f"login to {registry}: {username!r} is no user name")
    # Read it before the password is sent: if it can't be used, nothing has been sent.
    path = auth_file(environ)
    target, document = _read(path)
    found = Credentials(username, password, "", "this login")
    transport = Transport(Stop(), environ)
    try:
        one = Endpoint(registry, "", transport, patience, insecure, lookup=lambda *_: found)
        one.verify(f"login to {registry}")
    finally:
        transport.close()
    secret = base64.b64encode(f"{username}:{password}".encode()).decode()
    document.setdefault("auths", {})[registry] = {"auth": secret}
    _write(target, document)
    return path


def logout(registry: str, environ: Mapping[str, str]) -> str:
    """Forget the credentials for `registry`; return the file's path.

    Raises UdiError where there are none in the file that `login` writes.
    """
    path = auth_file(environ)
    target, document = _read(path)
    if registry not in document.get("auths", {}):
        raise UdiError(f"logout from {registry} failed on {path}: there are no credentials for it")
    del document["auths"][registry]
    _write(target, document)
    return path


def _read(path: str) -> tuple[str, dict[str, Any]]:
    """Return the file to be written, links followed, and what is in it.

    Raises Untrusted where somebody else may have written it or a link to it. It is not taken as
    empty then, or its other entries would be lost.
    """
    try:
        target = trust.destination(path, "the credentials file")
    except OSError as error:
        raise _not_kept(path, error) from None
    if not os.path.lexists(target):
        return target, {}
    return target, credentials.read(target, must=True) or {}


def _write(path: str, document: dict[str, Any]) -> None:
    temporary = f"{path}.{secrets.token_hex(6)}.tmp"
    try:
        trust.make(os.path.dirname(os.path.abspath(path)), 0o700)
        trust.destination(path, "the credentials file")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as error:
        raise _not_kept(path, error) from None


def _not_kept(path: str, error: OSError) -> UdiError:
    return UdiError(
        f"keeping credentials failed on {path}: {error.strerror}",
        disk_hint(error.errno, "set REGISTRY_AUTH_FILE to a file that you can write"),
    )
