"""Make a new container: plan it, and either print the plan or carry it out and run the command."""

import os
from sys import _xoptions, meta_path

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain, current
from rootless_udi.host.facts import look
from rootless_udi.launch import command, execute, inject
from rootless_udi.launch.facts import StartFacts
from rootless_udi.launch.rootfs import Rootfs
from rootless_udi.node import publish
from rootless_udi.plan import folder, planner, volumes
from rootless_udi.plan.options import Request
from rootless_udi.plan.planner import Plan
from rootless_udi.plan.steps import Mount, Squashfs, Step
from rootless_udi.store import find, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import NoReturn

    from rootless_udi.launch.counted import Count
    from rootless_udi.launch.holding import Hold
    from rootless_udi.launch.known import StartNote
    from rootless_udi.node.election import Election
    from rootless_udi.plan.environment import Operation
    from rootless_udi.plan.facts import HostPath
    from rootless_udi.plan.image import Image
    from rootless_udi.plan.pernodecache import FileCache
    from rootless_udi.plan.site import Site
    from rootless_udi.plan.volumes import Volume
    from rootless_udi.serve.helper import Helper
    from rootless_udi.serve.volumes import Volumes


def run(
    request: Request,
    environ: "dict[str, str]",
    own: "list[Operation]",
    place: tuple[str, int, str],
    fields: dict[str, str],
    found: StartFacts,
    helper: "Helper | None",
) -> int:
    """Run the request's command in a new container of its own, or print the plan (--explain).

    `own` are the caller's --env and --env-file; `found` are the facts from `launch.facts`; `helper`
    is None for --explain; for `place` and `fields` see `build`. Returns 0 after --explain, else
    becomes the command.
    """
    if helper is None:
        from rootless_udi.base import process
        from rootless_udi.launch import explain

        process.lenient()
        made = prepare(request, environ, found)
        explain.show(made, request.explain or "")
        return 0
    return build(request, environ, own, place, fields, found, helper)


def build(
    request: Request,
    environ: "dict[str, str]",
    own: "list[Operation]",
    place: tuple[str, int, str],
    fields: dict[str, str],
    found: StartFacts,
    helper: "Helper",
    election: "Election | None" = None,
    spaces: "tuple[int, int] | None" = None,
    keep: int = 0,
) -> "NoReturn":
    """Make the container, write its record and become the command.

    `place` is where the record goes: path and descriptor of the state directory, and the record's
    name. `fields` are the record's request, job and token (`node.record`), `spaces` the launcher's
    user namespaces (`node.pair`), None for some of its own. The container waits `keep` seconds for
    the next start.
    """
    _bundle()
    looked: dict[str, HostPath] = {}
    made = prepare(request, environ, found, looked)
    for text in () if request.quiet else made.warnings:
        complain("udi-run", f"warning: {text}")
    defaults, scripts = _defaults(made), _scripts(made)
    words = command.argv(request, defaults)
    env = command.variables(environ, request, defaults, own)
    names = command.workdir(request, defaults, current(environ))
    _extract(made, found.image, found.site, environ)
    if made.hooks:  # before pivot_root(2): afterwards our files may be unreachable
        from rootless_udi.launch import hooks
    count = _counter(found.site)
    hold = _hold(request, environ, found, made, keep) if keep else None
    helper.keeps = hold is not None
    helper.volumes = _volumes(made, found.site, environ)
    note = _note(request, environ, found, made, looked, place) if election is None else None
    execute.run(made, helper, spaces, Rootfs if note is None else note.rootfs)
    helper.answer()
    if scripts is not None:
        made = scripts.sourced(made, found.image.path, environ, request.quiet)
        env = command.variables(environ, request, _defaults(made), own)
    if made.hooks:
        # Hooks run once in a container; the ranks that join find what they prepared.
        hooks.run(made.hooks, env, request.module is not None, request.verbose)
    folder, lost = command.arrive(request, names)
    if place[1] >= 0:
        try:
            _publish(place, made, fields, helper, hold, bool(lost), note)
        except UdiError:
            if election is not None:
                raise
    helper.close()
    if election is not None:
        election.release()
    if count is not None:
        count.send(made.digest, made.image)
    _say(made, found, request.verbose)
    if lost:
        complain("udi-run", *command.outside(request, lost, environ))
    command.execute(words, env, folder)


def _defaults(made: Plan) -> command.Defaults:
    around = (_operations(made.before), _operations(made.after))
    return command.Defaults(*around, made.entrypoint, made.command, made.workdir)


def _scripts(made: Plan) -> "ModuleType | None":
    """Return what runs the image's scripts, if it has any; call this before pivot_root(2)."""
    if not made.scripts:
        return None
    from rootless_udi.launch import scripts

    return scripts


def _volumes(made: Plan, site: "Site", environ: "dict[str, str]") -> "Volumes | None":
    """Start the processes that serve the plan's squashfs volumes, if it has any, or unpack them."""
    steps = [step for step in made.steps if isinstance(step, Squashfs)]
    for step in steps:
        if step.directory:
            from rootless_udi.launch import unpacking

            unpacking.ensure(step.directory, step.root.path, resolve.all_stores(site, environ))
    steps = [step for step in steps if not step.directory]
    if not steps:
        return None
    from rootless_udi.serve.volumes import Volumes

    return Volumes(steps)


def _publish(
    place: tuple[str, int, str],
    made: Plan,
    fields: dict[str, str],
    helper: "Helper",
    hold: "Hold | None",
    told: bool,
    note: "StartNote | None",
) -> None:
    """Write the container's record, with the process that keeps it, and what is noted of the start.

    Raises UdiError.
    """
    path, directory, name = place
    pin = helper.keep(hold.seconds, hold.job) if hold else ""
    if hold and pin:
        fields = {**fields, "keep": str(hold.seconds)}
    same = hold.same if hold else ()
    publish.write(directory, path, name, made, fields, helper.answer(), told, pin, same)
    if note is not None:
        note.write(directory)


def _hold(
    request: Request, environ: "dict[str, str]", found: StartFacts, made: Plan, keep: int
) -> "Hold | None":
    from rootless_udi.launch import holding

    if any(not isinstance(step, Step) for step in made.steps):
        # A perNodeCache, in words that `plan.keeping` does not know.
        return None
    return holding.hold(request, environ, found, made, keep)


def _note(
    request: Request,
    environ: "dict[str, str]",
    found: StartFacts,
    made: Plan,
    looked: "dict[str, HostPath]",
    place: tuple[str, int, str],
) -> "StartNote | None":
    """Return what notes this start for the next one, where udi-run in C has looked for such a note
    and there is a state directory."""
    if "known" not in _xoptions or place[1] < 0:
        return None
    from rootless_udi.launch import known

    def again(facts: StartFacts, sources: "dict[str, HostPath]") -> Plan:
        return prepare(request, environ, facts, sources)

    return known.begin(request, environ, found, made, looked, again, place)


def prepare(
    request: Request,
    environ: "dict[str, str]",
    found: StartFacts,
    looked: "dict[str, HostPath] | None" = None,
) -> Plan:
    """Gather the rest of the facts and return the plan. Changes nothing.

    `looked` gets what was looked at of the host's paths. Raises UdiError for what is impossible.
    """
    site, facts, image = found.site, found.host, found.image
    asked = [v for text in request.volume for v in volumes.parse(text)]
    home = environ.get("HOME") or facts.home
    if request.home:
        asked += _home(home, asked)
    mounts = volumes.together(asked)
    injections, hooks = inject.gather(request, site, environ, image, facts)
    if request.shifter:
        from rootless_udi.plan import shifterconfig

        injections += (shifterconfig.injection(request, image, found.root, facts),)
    homes = (os.path.realpath(home), os.path.normpath(home))
    folders = folder.wanted(request, site, current(environ), homes)
    sources = look(planner.wanted(site, mounts, injections, folders))
    if looked is not None:
        looked.update(sources)
    if any("sqfs" in row.options for row in site.mounts):
        from rootless_udi.launch import squashvolumes

        site = squashvolumes.rows(site, sources, request, environ, found)
    caches = _caches(mounts, site, environ) + _squashfs(mounts, sources, request, environ, found)
    return planner.build(
        request,
        site,
        facts,
        image,
        found.root,
        sources,
        mounts,
        injections,
        hooks,
        caches,
        folders,
    )


def _home(home: str, asked: "list[Volume]") -> "list[Volume]":
    """Return the volume for --home; none if one of `asked` has the same destination."""
    volume = volumes.parse(volumes.quote(home), origin="--home")
    return [one for one in volume if all(one.destination != a.destination for a in asked)]


def _caches(
    mounts: "tuple[Volume, ...]", site: "Site", environ: "dict[str, str]"
) -> "tuple[Mount | FileCache, ...]":
    """Return the steps of perNodeCaches; without any, the node is not looked at."""
    if all(volume.cache is None for volume in mounts):
        return ()
    from rootless_udi.host import cachefacts
    from rootless_udi.plan import pernodecache

    found = cachefacts.gather(mounts, site, environ)
    return pernodecache.plan(mounts, site, found)


def _squashfs(
    mounts: "tuple[Volume, ...]",
    sources: "dict[str, HostPath]",
    request: Request,
    environ: "dict[str, str]",
    found: StartFacts,
) -> "tuple[Squashfs, ...]":
    """Return the steps of squashfs volumes; without any file among the volumes, nothing is read."""
    binds = (v for v in mounts if v.cache is None)
    if not any(v.form == "sqfs" or sources[v.source].kind == "file" for v in binds):
        return ()
    from rootless_udi.launch import squashvolumes

    return squashvolumes.steps(mounts, sources, request, environ, found)


def _bundle() -> None:
    """Write `rootless_udi.bundle`'s files if this start had none, or old ones, and may write
    them."""
    loader = getattr(__spec__, "loader", None)
    stale = any(getattr(one, "stale", False) for one in meta_path)
    if not stale and loader.__class__.__name__ != "SourceFileLoader":
        return
    package = os.path.dirname(os.path.dirname(__file__))
    if os.access(f"{package}/__pycache__", os.W_OK):
        from rootless_udi import bundle

        bundle.write(package)


def _counter(site: "Site") -> "Count | None":
    """Return what tells the gateway of this start; before pivot_root(2)."""
    if not site.gateway_starts:
        return None
    from rootless_udi.launch import counted

    return counted.begin(site)


def _operations(environment: "Sequence[object]") -> "list[Operation]":
    return [(e.op, e.name, e.value) for e in environment]  # type: ignore[attr-defined]


def _extract(made: Plan, image: "Image", site: "Site", environ: "dict[str, str]") -> None:
    """Extract the image into the store where that has not been done; for hosts without FUSE."""
    if made.root.server != "directory" or not image.path:
        return
    stores = resolve.all_stores(site, environ)
    if not image.directory:
        from rootless_udi.launch import unpacking

        unpacking.ensure(made.root.path, image.path, stores)
        return
    if not os.path.isdir(made.root.path):
        status = resolve.udi(["extract", "--", made.digest], {})
        if status:
            raise UdiError(f"image {made.image} could not be extracted into {made.root.path}")
    find.check_tree(made.root.path, stores)


def _say(made: Plan, found: StartFacts, verbose: bool) -> None:
    if not verbose:
        return
    complain("udi-run", f"image {made.image} ({made.digest or 'no digest'}): {made.root.reason}")
    if found.image.facts.get("user"):
        who = f"USER {found.image.facts['user']} is ignored: you are you"
        complain("udi-run", f"the image's {who}")
