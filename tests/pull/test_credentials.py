"""Where credentials come from, and what a registry's challenge asks for."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.pull import credentials
from rootless_udi.pull.authorizer import challenges
from rootless_udi.pull.credentials import Credentials


def encoded(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def helper(folder: Path, name: str, script: str) -> None:
    path = write(folder / f"docker-credential-{name}", f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_files_in_their_order(tmp_path: Path) -> None:
    home, run = tmp_path / "home", tmp_path / "run"
    environ = {"HOME": str(home), "XDG_RUNTIME_DIR": str(run)}
    docker = home / ".docker/config.json"
    assert credentials.find("host:1", "a", environ) is None
    write(docker, {"auths": {"host:1": encoded("docker", "pw:with:colons")}})
    found = credentials.find("host:1", "a", environ)
    assert found == Credentials("docker", "pw:with:colons", "", str(docker))
    write(home / ".config/containers/auth.json", {"auths": {"host:1": encoded("config", "b")}})
    assert credentials.find("host:1", "a", environ).username == "config"  # type: ignore[union-attr]
    write(run / "containers/auth.json", {"auths": {"host:1": encoded("run", "b")}})
    assert credentials.find("host:1", "a", environ).username == "run"  # type: ignore[union-attr]
    environ["REGISTRY_AUTH_FILE"] = str(tmp_path / "own.json")
    write(tmp_path / "own.json", {"auths": {"other": encoded("own", "b")}})
    # A file that does not know the registry leaves it to the next.
    assert credentials.find("host:1", "a", environ).username == "run"  # type: ignore[union-attr]
    write(tmp_path / "own.json", {"auths": {"host:1": encoded("own", "b")}})
    assert credentials.find("host:1", "a", environ).username == "own"  # type: ignore[union-attr]
    environ["DOCKER_CONFIG"] = str(tmp_path / "dc")
    assert credentials.files(environ)[-1] == f"{tmp_path}/dc/config.json"


@pytest.mark.parametrize(
    ("registry", "repository", "user"),
    [
        ("host:1", "a/b/c", "deep"),
        ("host:1", "a/b", "deep"),
        ("host:1", "a/bc", "a"),
        ("host:1", "x", "host"),
        ("host", "x", None),
        ("https.example", "x", "url"),
        ("v1.example", "x", "v1"),
        ("docker.io", "library/alpine", "hub"),
        ("ghcr.io", "x", None),
    ],
)
def test_the_closest_entry_counts(
    tmp_path: Path, registry: str, repository: str, user: str | None
) -> None:
    entries = {
        "host:1": "host",
        "host:1/a": "a",
        "host:1/a/b": "deep",
        "https://https.example": "url",
        "https://v1.example/v1/": "v1",
        "https://index.docker.io/v1/": "hub",
    }
    document = {"auths": {name: encoded(u, "p") for name, u in entries.items()}}
    document["auths"]["ghcr.io"] = {}
    path = write(tmp_path / "auth.json", document)
    found = credentials.find(registry, repository, {"REGISTRY_AUTH_FILE": str(path)})
    assert (found.username if found else None) == user


def test_plain_and_identity_tokens(tmp_path: Path) -> None:
    document = {
        "auths": {
            "plain": {"username": "u", "password": "p"},
            "token": {"auth": encoded("u", "")["auth"], "identitytoken": "t"},
        }
    }
    environ = {"REGISTRY_AUTH_FILE": str(write(tmp_path / "a.json", document))}
    assert credentials.find("plain", "", environ) == Credentials(
        "u", "p", "", str(tmp_path / "a.json")
    )
    found = credentials.find("token", "", environ)
    assert found is not None
    assert (found.token, found.password) == ("t", "")
    assert "t'" not in repr(found) and "p'" not in repr(credentials.find("plain", "", environ))


def test_helpers(tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    helper(
        bin_,
        "good",
        'test "$1" = get && server=$(cat) && '
        'printf \'{"ServerURL": "%s", "Username": "u", "Secret": "%s"}\' "$server" "$server"',
    )
    helper(bin_, "token", 'echo \'{"Username": "<token>", "Secret": "t"}\'')
    helper(bin_, "empty", "echo credentials not found in native keychain; exit 1")
    helper(bin_, "braces", "echo '{}'")
    helper(bin_, "blank", 'echo \'{"ServerURL": "", "Username": "", "Secret": ""}\'')
    document = {
        "auths": {"stored:1": {}},
        "credHelpers": {"own:1": "good", "docker.io": "good", "token:1": "token"},
        "credsStore": "good",
    }
    path = write(tmp_path / ".docker/config.json", document)
    environ = {"HOME": str(tmp_path), "PATH": f"{bin_}:/usr/bin:/bin"}
    origin = f"docker-credential-good ({path})"
    assert credentials.find("own:1", "a", environ) == Credentials("u", "own:1", "", origin)
    assert credentials.find("stored:1", "a", environ) == Credentials("u", "stored:1", "", origin)
    assert credentials.find("docker.io", "library/a", environ).password == credentials.HUB_KEY  # type: ignore[union-attr]
    assert credentials.find("token:1", "a", environ).token == "t"  # type: ignore[union-attr]
    for none in ("empty", "braces", "blank"):
        write(path, {"credsStore": none})
        assert credentials.find("own:1", "a", environ) is None


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo the keyring is locked; exit 1", "get failed on host:1: the keyring is locked"),
        ("exit 3", "get failed on host:1: exit status 3"),
        ("echo nonsense", "its answer is not as specified"),
        ("echo '[]'", "its answer is not as specified"),
        ('head -c 200000 /dev/zero | tr "\\0" "["', "its answer is not as specified"),
    ],
)
def test_helpers_that_fail(tmp_path: Path, script: str, message: str) -> None:
    helper(tmp_path, "bad", script)
    path = write(tmp_path / "a.json", {"credsStore": "bad"})
    environ = {"REGISTRY_AUTH_FILE": str(path), "PATH": f"{tmp_path}:/bin"}
    with pytest.raises(UdiError) as caught:
        credentials.find("host:1", "a", environ)
    assert message in caught.value.message
    assert caught.value.message.startswith("docker-credential-bad ")
    assert str(path) in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ("[" * 200_000, "is nested too deeply"),
        ('{"auths": []}', "auths is no object"),
        ('{"credHelpers": 1}', "credHelpers is no object"),
        ('{"auths": {"host:1": 1}}', "auths['host:1'] is no object"),
        ('{"auths": {"host:1": {"auth": "%%"}}}', "auth is no base64 of USER:PASSWORD"),
        ('{"auths": {"host:1": {"auth": "YWJj"}}}', "auth is no base64 of USER:PASSWORD"),
        ('{"auths": {"host:1": {"username": 1, "password": "x"}}}', "is not text"),
        ('{"credsStore": "a/b"}', "'a/b' names no helper"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "auth.json", text)
    with pytest.raises(UdiError) as caught:
        credentials.find("host:1", "a", {"REGISTRY_AUTH_FILE": str(path)})
    assert f"reading credentials failed on {path}: " in caught.value.message
    assert message in caught.value.message


def test_missing_things_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    with pytest.raises(UdiError, match=r"none\.json: No such file") as caught:
        credentials.find("h", "a", {"REGISTRY_AUTH_FILE": str(missing)})
    assert "REGISTRY_AUTH_FILE" in caught.value.hint
    path = write(tmp_path / "a.json", {"credsStore": "gone"})
    with pytest.raises(UdiError, match="docker-credential-gone was not found"):
        credentials.find("h", "a", {"REGISTRY_AUTH_FILE": str(path), "PATH": "/nowhere"})
    path.chmod(0)
    with pytest.raises(UdiError, match="Permission denied"):
        credentials.find("h", "a", {"REGISTRY_AUTH_FILE": str(path)})


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (['Basic realm="a b"'], [("basic", {"realm": "a b"})]),
        (
            ['Bearer realm="https://t/x?a=b,c",service="s",scope="repository:a:pull,push"'],
            [
                (
                    "bearer",
                    {
                        "realm": "https://t/x?a=b,c",
                        "service": "s",
                        "scope": "repository:a:pull,push",
                    },
                )
            ],
        ),
        (
            ["Negotiate, Basic realm=x , Bearer realm=y"],
            [("negotiate", {}), ("basic", {"realm": "x"}), ("bearer", {"realm": "y"})],
        ),
        (["BASIC", "bearer Realm=a"], [("basic", {}), ("bearer", {"realm": "a"})]),
        (['Basic realm="say \\"x\\""'], [("basic", {"realm": 'say "x"'})]),
        ([], []),
        (['"'], []),
    ],
)
def test_challenges(values: list[str], found: object) -> None:
    assert challenges(values) == found


@given(st.lists(st.text(max_size=60) | st.text('Basic realm="x",\\ =', max_size=60), max_size=3))
def test_any_challenge_ends(values: list[str]) -> None:
    for scheme, parameters in challenges(values):
        assert scheme and isinstance(parameters, dict)
