"""Every test of ranks is done twice: with udi-run in C, and with the script alone."""

import pytest

from tests.conftest import User
from tests.kit.places import TREE

C = pytest.param("c", marks=pytest.mark.needs("joiner"))


@pytest.fixture(params=["script", C])
def user(user: User, request: pytest.FixtureRequest) -> User:
    if request.param == "c":
        user.env["PATH"] = f"{TREE}/build/joiner:{user.env['PATH']}"
    return user
