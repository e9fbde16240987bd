"""Find an image that is elsewhere, by its URL, its name in a registry or at a gateway."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import GATEWAY, REMOTE
from rootless_udi.remote.sources import Remote, RemoteRequest, of_web

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def found(asked: RemoteRequest, known: "Callable[[], object]" = lambda: None) -> Remote | str:
    """Return the image, or what udi-run is told where it can't be read in place (`serve.distant`).

    `known` is called once an image could be pulled, if it can't be read. Raises UdiError, OSError.
    """
    if asked.fill:
        from rootless_udi.config import load
        from rootless_udi.store import striping

        try:
            striping.prepare(asked.folder, load.load(dict(os.environ)).stripes)
        except UdiError:
            pass  # without a store a start goes on
    if asked.image.startswith(REMOTE):
        return of_web(asked)
    if asked.image.startswith(GATEWAY):
        from rootless_udi.remote.gateway import of_gateway

        return of_gateway(asked)
    # Not for a URL: it is a tenth of a second.
    from rootless_udi.remote.pushed import of_registry

    return of_registry(asked, known)
