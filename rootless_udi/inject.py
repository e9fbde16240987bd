"""What modules, the host's MPI and its GPUs put into the container, in this order.

Each part is imported only where it is asked for.
"""

from rootless_udi.host import Host
from rootless_udi.options import Request
from rootless_udi.plan import Image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootless_udi.config import Site
    from rootless_udi.modules import Hook
    from rootless_udi.steps import Injection


def gather(
    request: Request, site: "Site", environ: "Mapping[str, str]", image: Image, host: Host
) -> "tuple[tuple[Injection, ...], tuple[Hook, ...]]":
    """Return the injections and the hooks that the request and the site ask for.

    Raises UdiError for a module that is unknown or can't be used on this host.
    """
    if request.module is None and not site.default_modules:
        return (), ()
    from rootless_udi import globs, modules

    wanted = site.default_modules if request.module is None else modules.names(request.module)
    chosen = modules.select(wanted, modules.available(site.modules))
    injection, hooks = modules.plan(chosen, globs.matches(modules.patterns(chosen)))
    return (injection,), hooks
