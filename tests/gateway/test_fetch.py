"""Images go from the gateway to whoever may read them: udi pull gateway://, and nginx in front."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import User
from tests.gateway.test_clients import configured
from tests.kit.gateway import NGINX, gateway
from tests.kit.registry import PASSWORD, USER, Registry

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")


@pytest.mark.needs("userns", "fuse")
def test_an_image_is_fetched_into_a_store_of_ones_own(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    tag = f"{registry.host}/site/box:1"
    with gateway(user, tmp_path / "site") as one:
        configured(user, f"unix:{one.socket}")
        ready = one.pulled(tag)
        done = user.run("udi", "pull", f"gateway:///{tag}")
        assert done.stdout == f"sha256:{ready['id']}\n", done.stderr
        assert "\nsquashfs: 1." in done.stderr and "layer" not in done.stderr
        token = user.run("udi", "gateway", "token").stdout.strip()
        env = {"UDI_GATEWAY_TOKEN": token, "UDI_STORE": str(tmp_path / "other")}
        trusted = f'[registry."127.0.0.1:{one.port}"]\ntrusted = true\n'
        configured(user, f"unix:{one.socket}", trusted)
        where = f"gateway://127.0.0.1:{one.port}/{tag}"
        done = user.run("udi", "pull", where, "mine:1", env=env)
        assert done.stdout == f"sha256:{ready['id']}\n", done.stderr
        for wrong, why in (
            (f"{where}-none", "image not found"),
            ("gateway://127.0.0.1:1/a", "can't be asked"),
            ("gateway://host/", "names no image of a gateway"),
        ):
            done = user.run("udi", "pull", wrong, env=env)
            assert done.returncode == 125 and why in done.stderr, done.stderr
        policy = tmp_path / "policy.json"
        signed = {"type": "sigstoreSigned", "keyPath": "/key"}
        for needed, why in (({"type": "reject"}, "it rejects all"), (signed, "only registries")):
            policy.write_text(json.dumps({"default": [needed]}))
            configured(user, f"unix:{one.socket}", f'{trusted}[image]\npolicy = "{policy}"\n')
            done = user.run("udi", "pull", where, "other:1", env=env)
            assert done.returncode == 125 and why in done.stderr, done.stderr
        configured(user, f"unix:{one.socket}", trusted)
        done = user.run("udi", "pull", "--force", where)
        assert done.returncode == 125 and "the image is taken as it is there" in done.stderr
        # What is damaged at the gateway is not taken.
        image = one.store / f"images/sha256-{ready['id']}.sqfs"
        with open(image, "r+b") as file:
            file.seek(5000)
            file.write(b"damage")
        done = user.run("udi", "pull", where, env={**env, "UDI_STORE": str(tmp_path / "third")})
        assert done.returncode == 125 and "damaged" in done.stderr
    # Without the gateway: facts and all.
    done = user.run("udi-run", "--pull=never", tag, "sh", "-c", "echo $A")
    assert done.stdout == "1\n", done.stderr
    assert user.run("udi-run", "mine:1", "true", env=env).returncode == 0


@pytest.mark.needs("nginx")
def test_nginx_sends_what_the_gateway_allows(
    user: User, tmp_path: Path, registry: Registry, closed: Registry
) -> None:
    """With the lines of contrib/gateway; what is nobody's to read is not to be had beside it."""
    from tests.kit.places import TREE

    with gateway(user, tmp_path / "site", "--accel=/udi-store", "--anonymous") as one:
        ready = one.pulled(f"{registry.host}/site/box:1")
        secret = {closed.host: f"{USER}:{PASSWORD}"}
        private = one.pulled(f"{closed.host}/site/big:1", authorized_locations=secret)
        text = (TREE / "contrib/gateway/nginx.conf").read_text()
        included = text.replace("/shared/udi/images", str(one.store))
        conf = tmp_path / "nginx.conf"
        conf.write_text(NGINX.format(folder=tmp_path, port=one.port, included=included))
        words = ["/usr/sbin/nginx", "-c", str(conf), "-e", f"{tmp_path}/error.log"]
        process = subprocess.Popen(words)

        def get(path: str, *more: str) -> tuple[int, bytes]:
            argv = ["curl", "-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "1"]
            argv += ["--unix-socket", f"{tmp_path}/front", "-w", "\n%{http_code}", *more]
            found = subprocess.run([*argv, f"http://g{path}"], capture_output=True, check=True)
            body, _, status = found.stdout.rpartition(b"\n")
            return int(status), body

        try:
            while not (tmp_path / "front").exists():
                assert process.poll() is None, (tmp_path / "error.log").read_text()
            data = (one.store / f"images/sha256-{ready['id']}.sqfs").read_bytes()
            path = f"/api/v1/images/sha256:{ready['id']}"
            assert get(path) == (200, data)
            assert get(path, "-r", "100-199") == (206, data[100:200])
            for hidden in (
                f"/api/v1/images/sha256:{private['id']}",
                f"/udi-store/images/sha256-{ready['id']}.sqfs",
                f"/udi-store/images/sha256-{private['id']}.sqfs",
                "/udi-store/gateway/gateway.sqlite",
                f"/udi-store/images/../gateway/gateway.sqlite?{os.getpid()}",
            ):
                assert get(hidden, "--path-as-is")[0] in (401, 404), hidden
        finally:
            process.terminate()
            process.wait()
