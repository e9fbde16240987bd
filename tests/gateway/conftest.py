"""Registries with small images and gateways of one database, shared by the tests of the gateway."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit.gateway import Gateway, gateway
from tests.kit.images import Layout, busybox_layout, tar
from tests.kit.postgres import Cluster, cluster
from tests.kit.pulling import HERE, noise
from tests.kit.registry import Registry, basic_registry, open_registry

CONFIG = {
    "Env": ["PATH=/bin", "A=1"],
    "Entrypoint": ["/bin/echo"],
    "WorkingDir": "/usr",
    "Labels": {"html": "<script>alert(1)</script>"},
}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="session")
def registry(place: Path) -> Iterator[Registry]:
    with open_registry(place / "r", place / "data") as one:
        layout = busybox_layout(place / "box", "1", CONFIG)
        one.push(layout.path, "1", "site/box:1")
        one.push(layout.path, "1", "site/same:2")
        big = Layout(place / "big")
        big.image(
            "1",
            [tar([(f"file{n}", noise(n, 3 << 20), {})]) for n in range(3)],
            {},
            HERE.architecture,
        )
        one.push(big.path, "1", "site/big:1")
        yield one


@pytest.fixture(scope="session")
def closed(place: Path, registry: Registry) -> Iterator[Registry]:
    """The same images, for who has a password."""
    with basic_registry(place / "closed", place / "data") as one:
        yield one


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("pg")
    (home / "run").mkdir()
    with cluster(User(home), home / "c") as one:
        yield one


@pytest.fixture
def url(postgres: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of an empty database."""
    name = f"d{abs(hash(request.node.name))}"
    yield postgres.database(name)
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def two(user: User, tmp_path: Path, url: str) -> Iterator[tuple[Gateway, Gateway]]:
    store, option = tmp_path / "site", f"--database={url}"
    with gateway(user, store, option) as one, gateway(user, store, option, name="2") as other:
        yield one, other
