"""A lazy start takes no longer than the site allows (image.timeout): it is an error then, or it is
said that the image is pulled."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rootless_udi.store.store import Store
from tests.conftest import User
from tests.kit.registry import Flaky, Quiet, Rule, flaky
from tests.remote.test_lazy import LAZY, Shop, opened, shop, store

pytestmark = pytest.mark.needs("userns", "fuse", "busybox", "registry", "skopeo")
__all__ = ["opened", "shop", "store"]
RUN = ("sh", "-c", "echo $FROM")


@pytest.fixture
def hung() -> Iterator["Hung"]:
    """Return what makes a rule for a registry that never answers what has a word in its path."""
    end = threading.Event()

    def of(word: str) -> Rule:
        def rule(_: Flaky, request: Quiet, path: str) -> bool:
            if word not in path:
                return False
            request.close_connection = True
            return end.wait(120)

        return rule

    yield of
    end.set()


Hung = Callable[[str], Rule]


def configure(user: User, shop: Shop, seconds: int, *mirrors: str) -> None:
    Path(user.env["UDI_CONFIG"]).write_text(
        f'[registry."{shop.front.host}"]\ntrusted = true\nmirrors = {list(mirrors)}\n'
        f"[image]\ntimeout = {seconds}\n"
    )


def test_a_registry_that_hangs_at_the_image(user: User, shop: Shop, hung: Hung) -> None:
    """It can't be pulled either."""
    configure(user, shop, 2)
    shop.front.rule = hung("/manifests/1")
    done = user.run("udi-run", LAZY, shop.name, *RUN)
    assert done.returncode == 125
    late = f"of {shop.name} did not come in 2 s"
    hung_up = f"pulling {shop.name}: no answer in time (2 s)"
    assert hung_up in done.stderr or late in done.stderr, done.stderr


@pytest.mark.parametrize("part", ("/referrers/", "squashfs", "facts"))
def test_a_registry_that_hangs_at_the_squashfs(
    part: str, user: User, shop: Shop, store: Store, hung: Hung
) -> None:
    """The image is made of its layers, and what hangs is not asked for again."""
    configure(user, shop, 2)
    blobs = shop.blobs()
    word = blobs.get(part, part)
    shop.front.rule = hung(word)
    done = user.run("udi-run", LAZY, shop.name, *RUN)
    assert (done.returncode, done.stdout) == (0, "afar\n"), done.stderr
    assert f"{shop.name} is pulled first: " in done.stderr and "2 s" in done.stderr, done.stderr
    asked = len(shop.front.paths(word))
    assert "pushed" not in store.facts(store.images()[0].image)
    if part != "facts":
        return
    assert user.run("udi", "rm", shop.name).returncode == 0
    ranks = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
    done = user.run("udi-run", LAZY, shop.name, "true", env=ranks)
    assert done.returncode == 125 and "a job of several ranks never pulls" in done.stderr
    assert f"{shop.name} must be pulled first: " in done.stderr
    assert len(shop.front.paths(word)) == 2 * asked


def test_mirrors_that_hang(user: User, shop: Shop, store: Store, hung: Hung) -> None:
    """One leaves time for the registry behind it."""
    with flaky(shop.front.target) as mirror:
        configure(user, shop, 4, mirror.host)
        mirror.rule = hung("/v2/")
        done = user.run("udi-run", LAZY, shop.name, *RUN)
        assert (done.returncode, done.stdout) == (0, "afar\n"), done.stderr
        assert shop.windows() and len(mirror.log) == 1
        assert user.run("udi", "fetch", "-q", shop.name).returncode == 0
    assert "pushed" in store.facts(store.images()[0].image)


@pytest.mark.parametrize(
    ("first", "last", "status", "said"),
    ((0, 3, 125, "udi-run: "), (3, 6, 0, "is pulled first: ")),
    ids=("of the image", "of the squashfs"),
)
def test_answers_that_take_too_long_together(
    first: int, last: int, status: int, said: str, user: User, shop: Shop
) -> None:
    """Each comes in time: /v2/, the manifest and the config; all of the squashfs."""
    configure(user, shop, 2)
    never = threading.Event()

    def rule(front: Flaky, _: Quiet, __: str) -> bool:
        if first < len(front.log) <= last:
            never.wait(0.9)
        return False

    shop.front.rule = rule
    done = user.run("udi-run", LAZY, shop.name, *RUN)
    assert (done.returncode, done.stdout) == (status, "" if status else "afar\n"), done.stderr
    why = f"{said}what a start needs of {shop.name} did not come in 2 s"
    assert why in done.stderr, done.stderr
