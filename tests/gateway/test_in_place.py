"""udi-run gateway://HOST/NAME: an image of a gateway's starts where it is, checked by its list."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.store import filling
from rootless_udi.store.store import Store
from tests.conftest import User
from tests.gateway.test_clients import configured
from tests.kit.gateway import Gateway, gateway, munged
from tests.kit.registry import PASSWORD, USER, Flaky, Quiet, Registry, flaky

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway", "userns", "fuse", "busybox")
ECHO = ("sh", "-c", "echo $A")


@pytest.fixture
def served(user: User, tmp_path: Path) -> Iterator[Gateway]:
    with gateway(user, tmp_path / "site") as one:
        configured(user, f"unix:{one.socket}")
        yield one


@pytest.fixture
def store(user: User) -> Store:
    return Store(user.env["UDI_STORE"])


def test_a_start_in_place(served: Gateway, user: User, registry: Registry, store: Store) -> None:
    """By the socket, and over TCP with a token; nothing of it is an image of the store's."""
    name = f"gateway:///{registry.host}/site/box:1"
    digest = f"sha256:{served.pulled(f'{registry.host}/site/box:1')['id']}"
    token = user.run("udi", "gateway", "token").stdout.strip()
    done = user.run("udi-run", name, *ECHO)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    done = user.run("udi-run", "--explain", name, *ECHO)
    assert f"image {digest} of the gateway at unix:{served.socket}" in done.stdout, done.stderr
    assert not store.images() and not filling.listed(store)
    address = f"http://127.0.0.1:{served.port}"
    configured(user, address)
    done = user.run("udi-run", name, *ECHO)
    assert done.returncode == 125 and "making a munge credential failed" in done.stderr
    done = user.run("udi-run", name, *ECHO, env={"UDI_GATEWAY_TOKEN": token})
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    for wrong, why in (
        (f"{name}-none", "image not found"),
        ("gateway:///", "names no image of a gateway"),
        ("gateway://a_b!/x", "is no host name"),
    ):
        done = user.run("udi-run", wrong, "true", env={"UDI_GATEWAY_TOKEN": token})
        assert done.returncode == 125 and why in done.stderr, done.stderr
    done = user.run("udi-run", "--pull=never", name, "true")
    assert done.returncode == 125 and "is in no image store" in done.stderr
    (user.home / ".config/rootless_udi/config.toml").unlink()
    done = user.run("udi-run", name, "true")
    assert done.returncode == 125 and "names no image gateway" in done.stderr
    served.stop()
    configured(user, address)
    done = user.run("udi-run", name, "true", env={"UDI_GATEWAY_TOKEN": token})
    assert done.returncode == 125 and f"{address} can't be asked" in done.stderr


def test_it_fills_the_store(served: Gateway, user: User, registry: Registry, store: Store) -> None:
    """It has the registry's name there, too, since the configuration names this gateway."""
    tag = f"{registry.host}/site/box:1"
    name = f"gateway:///{tag}"
    digest = f"sha256:{served.pulled(tag)['id']}"
    done = user.run("udi-run", "--pull=lazy", name, *ECHO)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    done = user.run("udi", "fetch", name)
    assert (done.returncode, done.stdout) == (0, f"{digest}\n"), done.stderr
    (one,) = store.images()
    assert {text for _, text in one.names} == {name, tag}
    theirs = served.store / f"images/{digest.replace(':', '-')}.sqfs"
    assert Path(one.image.squashfs).read_bytes() == theirs.read_bytes()
    served.stop()
    for words in ((name,), ("--pull=never", name), ("--pull=never", tag)):
        done = user.run("udi-run", "--pull=lazy", *words, *ECHO)
        assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    for command in ("inspect", "verify", "rm"):
        done = user.run("udi", command, name)
        assert done.returncode == 0, done.stderr


def test_a_gateway_that_nobody_named(
    user: User, tmp_path: Path, registry: Registry, closed: Registry, store: Store
) -> None:
    """It is not told who asks, and the digest that it says is not believed: whoever asks the store
    for that must get the registry's image."""
    tag = f"{registry.host}/site/box:1"
    with (
        gateway(user, tmp_path / "site", "--anonymous") as one,
        flaky(f"127.0.0.1:{one.port}") as front,
    ):
        configured(user, f"unix:{one.socket}")
        digest = f"sha256:{one.pulled(tag)['id']}"
        secret = {closed.host: f"{USER}:{PASSWORD}"}
        one.pulled(f"{closed.host}/site/big:1", authorized_locations=secret)
        env = {"UDI_GATEWAY_TOKEN": user.run("udi", "gateway", "token").stdout.strip()}
        name = f"gateway://{front.host}/{tag}"
        done = user.run("udi", "pull", name, env=env)
        listed = done.stdout.strip()
        assert done.returncode == 0 and user.run("udi", "rm", name).returncode == 0, done.stderr
        done = user.run("udi-run", "--pull=lazy", name, *ECHO, env=env)
        assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
        done = user.run("udi", "fetch", name, env=env)
        assert (done.returncode, done.stdout) == (0, f"{listed}\n"), done.stderr
        (found,) = store.images()
        assert [text for _, text in found.names] == [name]
        assert store.facts(found.image)["windows"] == [listed]
        assert listed != digest
        assert {given for _, _, given in front.log} == {""}
        done = user.run(
            "udi-run", f"gateway://{front.host}/{closed.host}/site/big:1", "true", env=env
        )
        assert done.returncode == 125 and "image not found" in done.stderr, done.stderr
    with gateway(user, tmp_path / "other") as one:
        done = user.run("udi-run", f"gateway://127.0.0.1:{one.port}/{tag}", "true", env=env)
        assert done.returncode == 125, done.stdout
        assert "it was not told who asks" in done.stderr, done.stderr


@pytest.mark.needs("munge")
def test_munge_says_who_asks(user: User, tmp_path: Path, registry: Registry) -> None:
    """Each request has a credential of its own, since none counts twice."""
    tag = f"{registry.host}/site/box:1"
    with (
        munged(tmp_path / "munge") as path,
        gateway(user, tmp_path / "site", f"--munge={path}") as one,
    ):
        one.pulled(tag)
        configured(user, f"http://127.0.0.1:{one.port}", f'munge_socket = "{path}"\n')
        done = user.run("udi-run", f"gateway:///{tag}", *ECHO)
        assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_damage_and_another_file(
    served: Gateway, user: User, registry: Registry, store: Store
) -> None:
    """A window that is not what the list says is EIO; a list that is damaged is no start."""
    tag = f"{registry.host}/site/big:1"
    image = served.store / f"images/sha256-{served.pulled(tag)['id']}.sqfs"
    data = image.read_bytes()
    with open(image, "r+b") as file:
        file.seek(5 << 20)
        file.write(b"damage")
    done = user.run("udi-run", f"gateway:///{tag}", "true")
    # The image has no shell: that it was looked for shows that it is mounted.
    assert "No such file" in done.stderr or "not found" in done.stderr, done.stderr
    done = user.run("udi", "fetch", f"gateway:///{tag}")
    assert done.returncode == 125 and "what comes is not what its list" in done.stderr, done.stderr
    image.write_bytes(data[:-4096] + bytes(4096))
    done = user.run("udi-run", f"gateway:///{tag}", "true")
    assert done.returncode == 125 and "list of" in done.stderr, done.stderr
    assert not store.images()


def test_it_is_asked_again(user: User, tmp_path: Path, registry: Registry) -> None:
    """Where a gateway is busy; what came is not fetched twice."""
    tag = f"{registry.host}/site/big:1"
    with gateway(user, tmp_path / "site") as one, flaky(f"127.0.0.1:{one.port}") as front:
        configured(user, f"unix:{one.socket}")
        one.pulled(tag)
        env = {"UDI_GATEWAY_TOKEN": user.run("udi", "gateway", "token").stdout.strip()}
        configured(user, f"http://{front.host}")
        busy: set[str] = set()

        def rule(_: Flaky, request: Quiet, path: str) -> bool:
            span = request.headers.get("Range", "")
            if not span or span in busy:
                return False
            busy.add(span)
            request.answer(503)
            return True

        front.rule = rule
        done = user.run("udi", "fetch", f"gateway:///{tag}", env=env)
        assert done.returncode == 0 and busy, done.stderr
