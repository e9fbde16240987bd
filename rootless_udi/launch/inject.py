"""Gather what modules, the host's MPI and the host's GPUs add to the container, in this order.

The code of each is imported only if it is asked for.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.facts import Host
from rootless_udi.plan.image import Image
from rootless_udi.plan.options import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootless_udi.plan.site import Site
    from rootless_udi.plan.steps import Hook, Injection


def gather(
    request: Request, site: "Site", environ: "Mapping[str, str]", image: Image, host: Host
) -> "tuple[tuple[Injection, ...], tuple[Hook, ...]]":
    """Return the injections and the hooks that the request and the site ask for.

    Raises UdiError for a module that is unknown or can't be used on this host.
    """
    parts: list[Injection] = []
    hooks: tuple[Hook, ...] = ()
    mpi, gpu = request.mpi, request.gpu
    if request.module is not None or site.default_modules:
        from rootless_udi.host import globs
        from rootless_udi.plan import modules

        wanted = site.default_modules if request.module is None else modules.names(request.module)
        chosen = modules.select(wanted, modules.available(site.modules))
        own = [module for module in chosen if not module.built_in]
        part, hooks = modules.plan(own, globs.matches(modules.patterns(own)))
        parts.append(part)
        names = {module.name for module in chosen if module.built_in}
        mpi = "auto" if mpi is None and "mpi" in names else mpi
        gpu = "auto" if gpu is None and "gpu" in names else gpu
    if mpi is not None and mpi != "none":
        parts.append(_mpi(mpi, request, site, environ, image, parts))
    if gpu is not None or request.device:
        from rootless_udi.mpi_inject.gpu import planner

        asked = "" if gpu is None else gpu or "auto"
        cards = planner.plan(
            asked,
            request.device,
            image.facts,
            environ,
            machine=host.machine,
            directories=site.cdi_spec_dirs,
            glibc=request.mpi_glibc or "auto",
        )
        # MPI and GPUs may both bring the host's C library, which is mounted once.
        laid = {target for part in parts for target in part.together}
        steps = tuple(s for s in cards.steps if s.target not in laid)
        parts.append(cards.replace(steps=steps))
    return tuple(parts), hooks


def _mpi(
    mpi: str,
    request: Request,
    site: "Site",
    environ: "Mapping[str, str]",
    image: Image,
    parts: "list[Injection]",
) -> "Injection":
    """Return what the host's MPI adds, for the request's command and its environment.

    `parts` are the injections so far. Raises UdiError.
    """
    from rootless_udi.launch import command
    from rootless_udi.mpi_inject.mpi import planner, profiles
    from rootless_udi.plan import environment

    elf = image.facts.get("elf")
    if not elf:
        raise UdiError(
            f"--mpi: nothing is known of the libraries of {image.request}",
            "only images of `udi pull` can have the host's MPI put in",
        )
    known = [profiles.from_dict(name, table) for name, table in site.mpi.items()]
    facts = image.facts
    entrypoint, cmd = facts.get("entrypoint") or (), facts.get("cmd") or ()
    words = command.argv(request, command.Defaults((), (), entrypoint, cmd, ""))
    # Without --env-file, which may be a pipe and can be read only once.
    inside = dict(environ)
    for operations in (
        environment.of_caller(environ, request.clearenv, request.shifter),
        environment.of_image(facts.get("env") or ()),
        environment.of_options(request.env),
        [(env.op, env.name, env.value) for part in parts for env in part.environment],
        [(env.op, env.name, env.value) for env in site.environment],
    ):
        environment.apply(inside, operations)
    compat, glibc = request.mpi_compat or "", request.mpi_glibc or "auto"
    return planner.inject(mpi, compat, elf, environ, known, words=words, env=inside, glibc=glibc)
