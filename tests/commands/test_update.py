"""udi update, tags and search, with real registries."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.pull import listing
from tests.conftest import User
from tests.kit import images
from tests.kit.pulling import HERE, QUICK
from tests.kit.registry import (
    PASSWORD,
    USER,
    Flaky,
    Quiet,
    Registry,
    Rule,
    flaky,
    open_registry,
    token_registry,
)

pytestmark = pytest.mark.needs("busybox", "registry", "skopeo")


@pytest.fixture
def layout(tmp_path: Path) -> images.Layout:
    one = images.Layout(tmp_path / "layout")
    for tag in ("1", "2"):
        content = [images.tar([*images.busybox_entries(), ("tag", tag.encode(), {})])]
        one.image(tag, content, {"Cmd": ["/bin/sh"]}, HERE.architecture)
    return one


@pytest.fixture
def registry(tmp_path: Path, layout: images.Layout) -> Iterator[Registry]:
    with open_registry(tmp_path / "registry", tmp_path / "data") as one:
        for tag in ("1", "2", "latest"):
            one.push(layout.path, "2" if tag == "2" else "1", f"team/app:{tag}")
        yield one


def test_update(user: User, registry: Registry, layout: images.Layout) -> None:
    name = f"{registry.host}/team/app"
    old = user.run("udi", "pull", "-q", name).stdout.strip()
    assert user.run("udi", "pull", "-q", f"{name}:2").returncode == 0
    user.run("udi", "tag", name, f"{registry.host}/other/name:x")
    done = user.run("udi", "update")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "0 of 2 tags moved" in done.stderr
    assert "1 name is of another repository than its image, and left alone" in done.stderr
    registry.push(layout.path, "2", "team/app:latest")
    done = user.run("udi", "update", "--check")
    new = json.loads(user.run("udi", "inspect", f"{name}:2").stdout)["digest"]
    line = f"{name}:latest  {old[7:19]} -> {new[7:19]}\n"
    assert (done.returncode, done.stdout) == (0, line)
    assert json.loads(user.run("udi", "inspect", name).stdout)["digest"] == old
    done = user.run("udi", "update", "-q")
    assert (done.returncode, done.stdout) == (0, line) and "1 of 2 tags" in done.stderr
    assert json.loads(user.run("udi", "inspect", name).stdout)["digest"] == new
    # By its name the other one is asked for as well, and is nowhere.
    done = user.run("udi", "update", f"{registry.host}/other/name:x")
    assert done.returncode == 125 and "not found" in done.stderr
    done = user.run("udi", "update", "nosuch:1")
    assert done.returncode == 125 and "nosuch:1 is no tag of the image store" in done.stderr


def test_update_goes_on_without_a_registry(
    user: User, registry: Registry, layout: images.Layout, tmp_path: Path
) -> None:
    with open_registry(tmp_path / "second", tmp_path / "data2") as gone:
        gone.push(layout.path, "2", "a:1")
        assert user.run("udi", "pull", "-q", f"{gone.host}/a:1").returncode == 0
    assert user.run("udi", "pull", "-q", f"{registry.host}/team/app").returncode == 0
    registry.push(layout.path, "2", "team/app:latest")
    done = user.run("udi", "update", "-q")
    assert done.returncode == 125 and f"{gone.host}/a:1" in done.stderr
    assert done.stdout.startswith(f"{registry.host}/team/app:latest  ")


def test_tags_and_search(user: User, registry: Registry) -> None:
    done = user.run("udi", "tags", f"{registry.host}/team/app")
    assert sorted(done.stdout.split()) == ["1", "2", "latest"], done.stderr
    done = user.run("udi", "search", f"{registry.host}/app")
    assert done.stdout == f"{registry.host}/team/app\n", done.stderr
    done = user.run("udi", "search", f"{registry.host}/nosuch")
    assert done.returncode == 125 and "found no repository with 'nosuch'" in done.stderr
    done = user.run("udi", "tags", f"{registry.host}/nosuch")
    assert done.returncode == 125 and f"listing the tags of {registry.host}/nosuch" in done.stderr
    done = user.run("udi", "tags", "oci:/x")
    assert done.returncode == 125 and "is no repository of a registry" in done.stderr


@pytest.fixture
def proxy(registry: Registry) -> Iterator[Flaky]:
    with flaky(registry.host) as one:
        yield one


def answering(part: str, status: int, body: bytes = b"") -> Rule:
    """Return a rule that answers so to paths with `part`."""

    def rule(_: Flaky, request: Quiet, path: str) -> bool:
        if part in path:
            request.answer(status, body)
        return part in path

    return rule


def test_pages_stay_in_their_list(proxy: Flaky) -> None:
    """A registry's Link says where in the list the next page is, never which list or registry."""

    def rule(_: Flaky, request: Quiet, path: str) -> bool:
        if "/tags/list" not in path:
            return False
        last = "last=b" in path
        body = json.dumps({"name": "x", "tags": ["c"] if last else ["a", "b"]}).encode()
        there = {"Link": '<http://203.0.113.9/v2/secret/tags/list?n=2&last=b>; rel="next"'}
        request.answer(200, body, **({} if last else there))
        return True

    proxy.rule = rule
    assert listing.tags(proxy.host, "team/app", patience=QUICK) == ["a", "b", "c"]
    assert proxy.paths("list") == [
        "/v2/team/app/tags/list",
        "/v2/team/app/tags/list?n=2&last=b",
    ]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "is no JSON"),
        (b"[]", "has no list of tags"),
        (b'{"tags": {"a": 1}}', "has no list of tags"),
    ],
)
def test_wrong_lists(proxy: Flaky, body: bytes, why: str) -> None:
    proxy.rule = answering("list", 200, body)
    with pytest.raises(UdiError, match=why):
        listing.tags(proxy.host, "team/app", patience=QUICK)


def test_a_list_without_end(proxy: Flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    from rootless_udi.pull import registry

    monkeypatch.setattr(registry, "PAGES", 3)
    link = '</v2/x/tags/list?last=a>; rel="next"'

    def rule(_: Flaky, request: Quiet, path: str) -> bool:
        if "list" in path:
            request.answer(200, b'{"tags": ["a", 7, null]}', Link=link)
        return "list" in path

    proxy.rule = rule
    with pytest.raises(UdiError, match="no end of pages"):
        listing.tags(proxy.host, "team/app", patience=QUICK)


def test_a_registry_without_a_list(proxy: Flaky) -> None:
    proxy.rule = answering("catalog", 404)
    with pytest.raises(UdiError, match=r"searching .*: not found") as raised:
        listing.search(proxy.host, "app", patience=QUICK)
    assert "it shows no list" in raised.value.hint


def test_tags_with_a_token(tmp_path: Path) -> None:
    with token_registry(tmp_path / "r", tmp_path / "data") as (one, tokens):
        with pytest.raises(UdiError, match=r"access denied|not found"):
            listing.tags(one.host, "public/nosuch", patience=QUICK)
        with pytest.raises(UdiError, match="access denied"):
            listing.search(one.host, "x", patience=QUICK)
        assert tokens.asked


def test_a_list_of_all_repositories_with_a_token(tmp_path: Path, user: User) -> None:
    """To who may see it; a token for it is asked for by `udi search` alone."""
    with token_registry(tmp_path / "r", tmp_path / "data") as (one, tokens):
        images.busybox_layout(tmp_path / "layout")
        one.push(tmp_path / "layout", "latest", "team/calib:1", f"--dest-creds={USER}:{PASSWORD}")
        login = ["udi", "login", one.host, "--username", USER, "--password-stdin"]
        assert user.run(*login, input=PASSWORD).returncode == 0
        tokens.asked.clear()
        found = user.run("udi", "search", f"{one.host}/cali")
        assert (found.stdout, found.stderr) == (f"{one.host}/team/calib\n", "")
        assert ["registry:catalog:*"] in [query.get("scope") for _, query in tokens.asked]
        tokens.asked.clear()
        assert user.run("udi", "tags", f"{one.host}/team/calib").stdout == "1\n"
        assert tokens.asked and "catalog" not in str(tokens.asked)


def test_docker_hubs_answer() -> None:
    rows = [{"name": "ubuntu", "description": "a"}, {"name": "x", "description": None}, 7, {}]
    body = json.dumps({"results": rows}).encode()
    assert listing.hub(body, "searching") == [("ubuntu", "a"), ("x", "")]
    with pytest.raises(UdiError, match="searching: the answer has no list of results"):
        listing.hub(b"[]", "searching")
