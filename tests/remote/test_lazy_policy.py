"""A start of an image that the store has not asks the policy before anything is read of it."""

from pathlib import Path

import pytest

from rootless_udi.store.store import Store
from tests.conftest import User
from tests.kit.artifacts import Pusher
from tests.kit.signatures import Key, attach, payload
from tests.pull.test_signatures import signed_by, write
from tests.remote.test_lazy import LAZY, Shop, opened, shop, store

pytestmark = pytest.mark.needs("userns", "fuse", "busybox", "registry", "skopeo")
__all__ = ["opened", "shop", "store"]


def test_a_lazy_start(user: User, shop: Shop, store: Store, tmp_path: Path) -> None:
    key = Key(tmp_path, "key")
    name = shop.name.rpartition(":")[0]
    write(user.home / "policy.json", signed_by(key))
    config = Path(user.env["UDI_CONFIG"])
    # No registry is trusted: the squashfs must be signed, too.
    config.write_text(f'[image]\npolicy = "{user.home}/policy.json"\n')
    run = ("udi-run", LAZY, shop.name, "sh", "-c", "echo $FROM")
    done = user.run(*run)
    assert done.returncode and "it is not signed" in done.stderr
    assert not shop.windows() and not store.images()
    pusher = Pusher(shop.front.target, "app")
    tag = shop.digest.replace(":", "-")
    claim = pusher.read(f"manifests/{tag}")["manifests"][0]["digest"]
    for digest in (shop.digest, claim):
        data = payload(digest, name)
        attach(pusher, digest, (data, key.sign(data)))
    done = user.run(*run)
    assert (done.returncode, done.stdout) == (0, "afar\n"), done.stderr
    assert shop.windows()
    assert user.run("udi", "fetch", shop.name).returncode == 0
    facts = store.facts(store.images()[0].image)
    assert facts["signed"] == [f"signed by {key.public} for {name}"]
    assert facts["pushed"]["artifact"] == claim
