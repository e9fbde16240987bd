"""Logging in to real registries: tried first, kept after, used by the next pull."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.pull import credentials
from rootless_udi.pull.login import auth_file, login, logout, registry_name
from rootless_udi.pull.retry import Patience
from tests.kit.registry import PASSWORD, USER, basic_registry, closed_port, token_registry

QUICK = Patience(attempts=2, first=0.01, longest=0.02)


@pytest.fixture(scope="module", params=["basic", "token"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("login")
    if request.param == "basic":
        with basic_registry(place / "r", place / "data") as one:
            yield one.host
    else:
        with token_registry(place / "r", place / "data") as (one, _):
            yield one.host


@pytest.mark.needs("registry")
def test_login_and_logout(host: str, tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    path = login(host, USER, PASSWORD, environ, patience=QUICK)
    assert path == f"{tmp_path}/.config/containers/auth.json"
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert credentials.find(host, "a/b", environ) == credentials.Credentials(
        USER, PASSWORD, "", path
    )
    with pytest.raises(UdiError, match=f"login to {host}: access denied to udi"):
        login(host, USER, "wrong", environ, patience=QUICK)
    assert credentials.find(host, "a/b", environ) is not None
    assert logout(host, environ) == path
    assert credentials.find(host, "a/b", environ) is None
    with pytest.raises(UdiError, match=f"logout from {host} failed on .*: there are no"):
        logout(host, environ)


@pytest.mark.needs("registry")
def test_other_entries_and_links_are_kept(host: str, tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text(json.dumps({"auths": {"other": {"auth": "YTpi"}}, "credsStore": ""}))
    link.symlink_to(real)
    environ = {"REGISTRY_AUTH_FILE": str(link)}
    login(host, USER, PASSWORD, environ, patience=QUICK)
    assert link.is_symlink()
    assert set(json.loads(real.read_text())["auths"]) == {"other", host}


def test_where_a_login_is_kept(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    assert auth_file(environ) == f"{tmp_path}/.config/containers/auth.json"
    (tmp_path / "run/containers").mkdir(parents=True)
    (tmp_path / "run/containers/auth.json").write_text("{}")
    assert auth_file(environ) == f"{tmp_path}/run/containers/auth.json"
    with pytest.raises(UdiError, match="HOME is not set"):
        auth_file({})


def test_logins_that_cannot_be(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    for user in ("", "a:b"):
        with pytest.raises(UdiError, match="is no user name"):
            login("host:1", user, "x", environ)
    refused = pytest.raises(UdiError, match=r"login to 127.*: Connection refused")
    with closed_port() as port, refused:
        login(f"127.0.0.1:{port}", "u", "x", environ, patience=QUICK)


@pytest.mark.needs("registry")
def test_a_file_that_cannot_be_written(host: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    environ = {"REGISTRY_AUTH_FILE": str(tmp_path / "a.json")}
    with pytest.raises(UdiError, match=r"keeping credentials failed on .*a\.json: Permission"):
        login(host, USER, PASSWORD, environ, patience=QUICK)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("docker.io", "docker.io"),
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("ghcr.io", "ghcr.io"),
        ("localhost", "localhost"),
        ("https://Host.example:5000/", "host.example:5000"),
    ],
)
def test_names_of_registries(text: str, name: str) -> None:
    assert registry_name(text) == name


@pytest.mark.parametrize(
    "text", ["host.example/a", "nohost", "library", "a b.c", "ftp://x.y", "h:99999"]
)
def test_what_is_no_registry(text: str) -> None:
    with pytest.raises(UdiError):
        registry_name(text)
