"""Gather what modules, the host's MPI and the host's GPUs add to the container, in this order.

The code of each is imported only if it is asked for.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain
from rootless_udi.plan.facts import Host
from rootless_udi.plan.image import Image
from rootless_udi.plan.options import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootless_udi.plan.modules import Module
    from rootless_udi.plan.site import Site
    from rootless_udi.plan.steps import Hook, Injection


def gather(
    request: Request, site: "Site", environ: "Mapping[str, str]", image: Image, host: Host
) -> "tuple[tuple[Injection, ...], tuple[Hook, ...]]":
    """Return the injections and the hooks that the request and the site ask for.

    One of the site's default modules that can't be used on this node or with this image is left
    out, and so are those that require it. Raises UdiError for a module that was asked for by name
    and can't be used, and for an error in a module's file.
    """
    if request.module is None and not site.default_modules:
        return _parts(request, site, environ, image, host, ())
    from rootless_udi.plan import modules

    known = modules.available(site.modules)
    if request.module is not None:
        chosen = modules.select(modules.names(request.module), known)
        return _parts(request, site, environ, image, host, chosen)
    chosen = modules.select(site.default_modules, known)
    while True:
        try:
            return _parts(request, site, environ, image, host, chosen)
        except Unfit as unfit:
            _leave_out(unfit, request, environ, image)
            chosen = modules.without(chosen, unfit.module)


class Unfit(UdiError):
    """`module` can't be used on this node or with this image."""

    def __init__(self, module: str, error: UdiError) -> None:
        super().__init__(error.message, error.hint)
        self.module = module


def _leave_out(unfit: Unfit, request: Request, environ: "Mapping[str, str]", image: Image) -> None:
    """Print that a default module is left out, if --verbose or --explain asks for it.

    Also to ranks of a job whose image has an MPI: with its own MPI, the job may hang.
    """
    aloud = request.verbose or request.explain is not None
    if not aloud and unfit.module == "mpi" and image.facts.get("elf"):
        from rootless_udi.mpi_inject.mpi import planner
        from rootless_udi.node import launcher

        aloud = bool(
            launcher.launcher(environ, request.share or "auto")
            and planner.wanted_families(image.facts["elf"])
        )
    if aloud and not request.quiet:
        text = f"the site's default module {unfit.module} is left out: {unfit.message}"
        complain("udi-run", text, f"--module={unfit.module} insists on it")


def _parts(
    request: Request,
    site: "Site",
    environ: "Mapping[str, str]",
    image: Image,
    host: Host,
    chosen: "tuple[Module, ...]",
) -> "tuple[tuple[Injection, ...], tuple[Hook, ...]]":
    """Do what `gather` does with the modules `chosen`; raise Unfit for the first that can't be
    used."""
    parts: list[Injection] = []
    hooks: tuple[Hook, ...] = ()
    mpi, gpu = request.mpi, request.gpu
    by_module: set[str] = set()
    if chosen or request.module is not None:
        from rootless_udi.host import globs
        from rootless_udi.plan import modules

        own = [module for module in chosen if not module.built_in]
        matches = globs.matches(modules.patterns(own))
        for module in own:
            with _judged(module.name):
                modules.plan((module,), matches)
        part, hooks = modules.plan(own, matches)
        parts.append(part)
        by_module = {module.name for module in chosen if module.built_in}
        mpi = "auto" if mpi is None and "mpi" in by_module else mpi
        gpu = "auto" if gpu is None and "gpu" in by_module else gpu
    if mpi is not None and mpi != "none":
        with _judged("mpi" if request.mpi is None else ""):
            parts.append(_mpi(mpi, request, site, environ, image, parts))
    if gpu is not None or request.device:
        from rootless_udi.mpi_inject.gpu import planner

        asked = "" if gpu is None else gpu or "auto"
        with _judged("gpu" if request.gpu is None and not request.device else ""):
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


class _judged:
    """A context that turns a UdiError into `Unfit` of `module`; with "" it does nothing."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: "BaseException | None", trace: object) -> None:
        if isinstance(error, UdiError) and self.module:
            raise Unfit(self.module, error) from None


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
            "`udi pull` finds out what --mpi needs, and so does `udi import FILE NAME`",
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
