"""The libraries of the gateway, which only the extra `[gateway]` installs."""

import sys
from importlib.util import find_spec

from rootless_udi.base.errors import UdiError

MODULES = ("starlette", "hypercorn", "sqlalchemy", "alembic", "prometheus_client", "trio", "jinja2")


def need() -> None:
    """Raise UdiError where one of the libraries is missing."""
    missing = [name for name in MODULES if find_spec(name) is None]
    if missing:
        raise UdiError(
            f"udi gateway needs the Python modules {', '.join(missing)}, and {sys.executable} does "
            "not have them",
            "pip install 'rootless_udi[gateway]' installs them; only the gateway's host needs them",
        )
