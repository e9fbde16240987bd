"""Find the credentials for a registry: containers-auth.json(5), Docker's config.json, helpers.

The first of these files that has the registry is used: $REGISTRY_AUTH_FILE,
$XDG_RUNTIME_DIR/containers/auth.json, $XDG_CONFIG_HOME/containers/auth.json (~/.config),
$DOCKER_CONFIG/config.json (~/.docker).
"""

import base64
import binascii
import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from rootless_udi.base import fastjson, trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain
from rootless_udi.base.records import Record
from rootless_udi.plan.reference import DOCKER_HUB

HUB_KEY = "https://index.docker.io/v1/"
"""The name under which Docker keeps the credentials for Docker Hub."""
_HELPER_SECONDS = 60
"""Seconds that a credential helper may take."""
_NOT_FOUND = "credentials not found"
"""What a helper says where it has none (docker-credential-helpers, credentials/error.go)."""


class Credentials(Record):
    """Name and password, or an identity token (an OAuth2 refresh token).

    `origin` says in messages where they are from: a file, perhaps a helper.
    """

    username: str = ""
    password: str = ""
    token: str = ""
    origin: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, from {self.origin})"


def files(environ: Mapping[str, str]) -> list[str]:
    """Return the paths that may hold credentials, in their order; they need not exist."""
    home = environ.get("HOME", "")
    found = []
    if environ.get("REGISTRY_AUTH_FILE"):
        found.append(environ["REGISTRY_AUTH_FILE"])
    if environ.get("XDG_RUNTIME_DIR"):
        found.append(f"{environ['XDG_RUNTIME_DIR']}/containers/auth.json")
    config = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    if config:
        found.append(f"{config}/containers/auth.json")
    docker = environ.get("DOCKER_CONFIG") or (f"{home}/.docker" if home else "")
    if docker:
        found.append(f"{docker}/config.json")
    return found


def keys(registry: str, repository: str) -> list[str]:
    """Return the names that a file may have `registry`/`repository` by, the longest first."""
    found = []
    parts = repository.split("/") if repository else []
    hosts = [registry]
    if registry == DOCKER_HUB:
        hosts += ["index.docker.io", "registry-1.docker.io"]
    for length in range(len(parts), -1, -1):
        for host in hosts:
            name = "/".join([host, *parts[:length]])
            found.append(name)
    for host in hosts:
        found += [f"https://{host}", f"http://{host}"]
        found += [f"{scheme}://{host}/{end}" for scheme in ("https", "http")
                  for end in ("", "v2/", "v1/", "v2", "v1")]  # fmt: skip
    return found


def find(
    registry: str, repository: str = "", environ: Mapping[str, str] | None = None
) -> Credentials | None:
    """Return the credentials for a repository, or None where no file knows its registry.

    Raises UdiError for a file that cannot be read or has another format, and for a helper that
    fails; it names the file or the helper. $REGISTRY_AUTH_FILE must exist; the others need not.
    """
    environ = os.environ if environ is None else environ
    for path in files(environ):
        must = path == environ.get("REGISTRY_AUTH_FILE")
        document = read(path, must)
        if document is not None:
            found = _in_file(document, path, registry, repository, environ)
            if found is not None:
                return found
    return None


def read(path: str, must: bool) -> dict[str, Any] | None:
    """Return a file's JSON object, None where there is no file. Raises UdiError.

    The file can name programs (helpers), which run as the caller. So one that other users may have
    written is not used: a line on standard error says so. With `must` both cases are errors.
    """
    try:
        document = fastjson.loads(trust.read(path, what="the credentials file").decode())
    except trust.Untrusted as error:
        if must:
            raise
        complain("udi", f"{error.message}; passed over", error.hint)
        return None
    except FileNotFoundError:
        if must:
            raise UdiError(
                f"reading credentials failed on {path}: No such file or directory",
                "REGISTRY_AUTH_FILE names it; unset it or log in",
            ) from None
        return None
    except OSError as error:
        raise UdiError(f"reading credentials failed on {path}: {error.strerror}") from None
    except ValueError as error:
        raise UdiError(f"reading credentials failed on {path}: is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise UdiError(f"reading credentials failed on {path}: is no JSON object")
    for part in ("auths", "credHelpers"):
        if not isinstance(document.get(part, {}), dict):
            raise UdiError(f"reading credentials failed on {path}: {part} is no object")
    return document


def _in_file(
    document: dict[str, Any], path: str, registry: str, repository: str, environ: Mapping[str, str]
) -> Credentials | None:
    helpers, auths = document.get("credHelpers", {}), document.get("auths", {})
    hub = registry == DOCKER_HUB
    names = keys(registry, repository)
    for name in names:
        if name in helpers:
            server = HUB_KEY if hub and name in (DOCKER_HUB, "index.docker.io") else name
            return _ask(helpers[name], server, path, environ)
    # For registries whose credentials are in a credsStore, Docker writes empty objects here.
    for name in names:
        if name in auths:
            found = _entry(auths[name], name, path)
            if found is not None:
                return found
    store = document.get("credsStore")
    if store:
        return _ask(store, HUB_KEY if hub else registry, path, environ)
    return None


def _entry(entry: Any, name: str, path: str) -> Credentials | None:
    where = f"reading credentials failed on {path}: auths[{name!r}]"
    if not isinstance(entry, dict):
        raise UdiError(f"{where} is no object")
    token = entry.get("identitytoken", "")
    user, secret = entry.get("username", ""), entry.get("password", "")
    if entry.get("auth"):
        try:
            text = base64.b64decode(str(entry["auth"]), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise UdiError(f"{where}: auth is no base64 of USER:PASSWORD") from None
        user, colon, secret = text.partition(":")
        if not colon:
            raise UdiError(f"{where}: auth is no base64 of USER:PASSWORD")
        # Docker pads old entries with NUL bytes.
        secret = secret.strip("\0")
    if not all(isinstance(x, str) for x in (token, user, secret)):
        raise UdiError(f"{where}: is not text")
    if token:
        return Credentials(user, "", token, path)
    return Credentials(user, secret, "", path) if user else None


def _ask(helper: Any, server: str, path: str, environ: Mapping[str, str]) -> Credentials | None:
    """Run `docker-credential-HELPER get`, which reads the server's name from standard input.

    Source: docker-credential-helpers, README, "Development".
    """
    name = f"docker-credential-{helper}"
    if not isinstance(helper, str) or not helper or "/" in helper:
        raise UdiError(f"reading credentials failed on {path}: {helper!r} names no helper")
    program = shutil.which(name, path=environ.get("PATH"))
    if program is None:
        raise UdiError(f"{name} was not found", f"{path} names it: install it, or log in again")
    try:
        done = subprocess.run(
            [program, "get"],
            input=server,
            capture_output=True,
            text=True,
            errors="replace",
            env=dict(environ),
            timeout=_HELPER_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UdiError(f"{name} get failed on {server}: {error}", f"{path} names it") from None
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()
        if _NOT_FOUND in said:
            return None
        why = said.splitlines()[0] if said else f"exit status {done.returncode}"
        raise UdiError(f"{name} get failed on {server}: {why}", f"{path} names it")
    try:
        answer = fastjson.loads(done.stdout)
        if answer == {}:
            # Some helpers answer so, in place of the error, where they have no credentials.
            return None
        user, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError):
        why = "its answer is not as specified"
        raise UdiError(f"{name} get failed on {server}: {why}", f"{path} names it") from None
    origin = f"{name} ({path})"
    if user == "<token>":
        return Credentials("", "", str(secret), origin)
    return Credentials(str(user), str(secret), "", origin) if user else None
