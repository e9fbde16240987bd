"""Checks of what an ordinary user may do at the site, and of its configuration."""

from collections.abc import Iterator, Mapping
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.forecast import command, imagetree, isa, isa_process, isa_run
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import (
    FAILS,
    RUNS,
    UNKNOWN,
    UNLOOKED,
    WITH,
    CheckFinding,
    Evidence,
)
from rootless_udi.forecast.needs import Unreadable
from rootless_udi.forecast.site import Capture
from rootless_udi.plan import modules as site_modules
from rootless_udi.plan import sizes, volumes
from rootless_udi.plan.mountpoints import within

Findings = Iterator[CheckFinding]
_DEFAULT = ("/proc", "/sys", "/dev", "/tmp", "/var/tmp")
"""Mounted in every container: what images have there is not theirs to keep."""


def namespaces(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Findings:
    """User namespaces, FUSE and overlays of the site."""
    system = site.table("system")
    if system.get("userns") is False:
        yield CheckFinding(
            "namespaces",
            FAILS,
            "an ordinary user may make no user namespaces there",
            Evidence(),
            _said(site, "user and mount namespaces", "system.userns"),
            "ask the site: user.max_user_namespaces above 0; on Ubuntu the AppArmor profile",
        )
        return
    if system.get("userns") is not True:
        yield CheckFinding(
            "namespaces",
            UNKNOWN,
            "whether an ordinary user may make user namespaces there is not known",
            remedy="capture the site by `udi site capture`",
        )
        return
    there = Evidence("system.userns", "allowed")
    if system.get("fuse") is False:
        what = "there is no FUSE: the image is unpacked into a directory of the store at first"
        yield CheckFinding("namespaces", RUNS, what, Evidence(), _said(site, "/dev/fuse", ""))
    else:
        what = "an ordinary user may make user namespaces and mount images"
        yield CheckFinding("namespaces", RUNS, what, Evidence(), there)
    if asked.request.writable and system.get("overlay") is not True:
        yield CheckFinding(
            "namespaces",
            UNKNOWN,
            "--writable needs an overlay, which the site's kernel mounts for root alone; there it"
            " is fuse-overlayfs that does it, if it is installed",
            Evidence("--writable", ""),
            _said(site, "overlay in a user namespace", "system.overlay"),
            "leave --writable out, give --volume for what is written, or install fuse-overlayfs",
        )


def _said(site: Capture, what: str, key: str) -> Evidence:
    """Return what udi doctor found there about something."""
    found = site.table("system").get("findings")
    for row in found if isinstance(found, list) else []:
        if isinstance(row, list) and len(row) == 3 and row[1] == what:
            return Evidence("udi doctor", f"{row[1]}: {row[2]}")
    return Evidence(key, "not allowed" if key else "")


def hidden(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Findings:
    """Tell which paths that the image wants are hidden by the site's mounts."""
    if not site.knows("config"):
        yield CheckFinding(
            "mounts", UNLOOKED, "what the site mounts over the image: the capture does not say"
        )
        return
    rows = [row for row in site.table("config").get("mounts") or () if _is_mount(row)]
    covered = {str(row[1]): str(row[0]) for row in rows if row[1] not in _DEFAULT}
    clean = True
    for destination, source in covered.items():
        there = Evidence("config.mounts", f"{source} on {destination}")
        remedy = "put it elsewhere in the image (/opt/NAME)"
        below = [(w, p) for w, p in _wanted(facts, asked) if within(p, destination)]
        files = "" if below else _inside(destination, asked)
        if below:
            what, path = below[0]
            says = f"the image's {what} {path} is hidden by the site's mount on {destination}"
            verdict = FAILS if what == "command" else UNKNOWN
            yield CheckFinding("mounts", verdict, says, Evidence(path, what), there, remedy)
        elif files:
            says = f"the site's mount on {destination} hides files of the image there ({files})"
            spared = _runs_without(destination, facts, asked)
            says += "; the command ran here without them" if spared else ""
            verdict, remedy = (RUNS, "") if spared else (UNKNOWN, remedy)
            yield CheckFinding("mounts", verdict, says, Evidence(destination, files), there, remedy)
        clean = clean and not below and not files
    if clean:
        places = ", ".join(sorted(covered)) or "nothing but /tmp, /dev, /proc and /sys"
        what = "no mount of the site hides anything of the image"
        yield CheckFinding("mounts", RUNS, what, Evidence(), Evidence("config.mounts", places))


def _runs_without(destination: str, facts: Mapping[str, Any], asked: Asked) -> bool:
    """Tell whether the command ends well here with an empty folder at a path, once for all sites.

    What the site has there instead is not known, and so a command that fails without the image's
    files may still run.
    """
    known: dict[str, bool] = asked.memo.setdefault("runs without", {})
    if destination not in known:
        known[destination] = False
        try:
            trial = isa.trial(facts, asked)
            if (
                isinstance(trial, isa_run.Trial)
                and isa_run.native(trial).state != isa_process.REFUSED
            ):
                writable = isa_run.wants_writable(trial)
                known[destination] = isa_run.run(trial, writable=writable, hide=destination).fine
        except (OSError, UdiError, Unreadable):
            return False
    return known[destination]


def _wanted(facts: Mapping[str, Any], asked: Asked) -> list[tuple[str, str]]:
    """Return (what, path) of the command's file and of what the image's configuration names."""
    one = command.found(facts, asked)
    paths = [("command", one.entry.path)] if one and one.entry else []
    paths += [("command", one.word)] if one else []
    paths += [("ENTRYPOINT", str(w)) for w in list(facts.get("entrypoint") or ())[:1]]
    paths.append(("WORKDIR", str(facts.get("workdir") or "")))
    for pair in facts.get("env") or ():
        name, _, value = str(pair).partition("=")
        paths += [(f"ENV {name}", part) for part in value.split(":") if part.count("/") > 1]
    return [(what, path) for what, path in paths if path.startswith("/")]


def _inside(destination: str, asked: Asked) -> str:
    """Return what the image has at a path, for a message; "" where there is nothing to hide."""
    try:
        with imagetree.opened(asked.path, asked.offset) as tree:
            entry = imagetree.find(tree, destination)
            if entry is None:
                return ""
            if entry.kind != "directory":
                return f"a {entry.kind}"
            names = sorted(tree.names(entry.path))
    except Unreadable:
        return "it can't be read"
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _is_mount(row: object) -> bool:
    return isinstance(row, list) and len(row) >= 2 and all(isinstance(w, str) for w in row[:2])


def given_volumes(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Findings:
    """Tell whether the sources of --volume are at the site, and a perNodeCache fits."""
    try:
        found = volumes.together(
            [one for text in asked.request.volume for one in volumes.parse(text)]
        )
    except UdiError as error:
        yield CheckFinding("volumes", FAILS, error.message, remedy=error.hint)
        return
    rows = [row for row in site.table("config").get("mounts") or () if _is_mount(row)]
    sources = [str(row[0]) for row in rows]
    for one in found:
        image = Evidence("--volume", f"{one.source}:{one.destination}")
        if one.cache is not None:
            yield from _cache(site, one, image)
        elif any(within(one.source, source) and source != "/" for source in sources):
            what = f"{one.source} lies in a file system that the site has"
            yield CheckFinding("volumes", RUNS, what, image, Evidence("config.mounts", one.source))
        else:
            yield CheckFinding(
                "volumes",
                UNKNOWN,
                f"whether {one.source} is there is not in the capture",
                image,
                Evidence("config.mounts", ", ".join(sources[:6])),
                "make sure that it is there on the compute nodes",
            )


def _cache(site: Capture, one: volumes.Volume, image: Evidence) -> Findings:
    assert one.cache is not None
    size, limit, memory = (
        one.cache.size,
        site.number("config", "cache_limit"),
        site.number("memory"),
    )
    shown = sizes.show(size)
    if limit and size > limit:
        what = f"a perNodeCache of {shown} is more than the site allows ({sizes.show(limit)})"
        there = Evidence("config.cache_limit", sizes.show(limit))
        yield CheckFinding("volumes", FAILS, what, image, there, "ask for a smaller one")
    elif one.cache.method == "file":
        what = f"a perNodeCache of {shown} in a file needs as much room there"
        yield CheckFinding("volumes", UNLOOKED, what, image)
    elif not memory:
        yield CheckFinding("volumes", UNKNOWN, "the node's memory is not known", image)
    elif size >= memory:
        yield CheckFinding(
            "volumes",
            FAILS,
            f"a perNodeCache of {shown} in memory is more than a node has ({sizes.show(memory)})",
            image,
            Evidence("memory", sizes.show(memory)),
            "a smaller one, or :perNodeCache=size=...,method=file on a parallel file system",
        )
    else:
        what = f"a perNodeCache of {shown} fits into a node's {sizes.show(memory)}"
        yield CheckFinding("volumes", RUNS, what, image, Evidence("memory", sizes.show(memory)))


def store(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Findings:
    """Compare the size of the image's file with the room for a store."""
    free = site.number("config", "store")
    size = asked.size
    image = Evidence(asked.path, f"{size / 1e9:.2f} GB" if size else "a directory")
    if not free or not size:
        what = "whether the image fits into the store there: " + (
            "the capture does not say" if size else "it is a directory"
        )
        yield CheckFinding("store", UNLOOKED, what, image)
        return
    there = Evidence("config.store", f"{free / 1e9:.0f} GB free")
    if size > free:
        what = "the image is larger than the room for a store"
        yield CheckFinding("store", FAILS, what, image, there, "set UDI_STORE to another place")
    else:
        yield CheckFinding("store", RUNS, "the image fits into the store", image, there)


def modules(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Findings:
    """Tell whether the modules of --module are there."""
    if asked.request.module is None:
        return
    image = Evidence("--module", asked.request.module)
    try:
        wanted = site_modules.names(asked.request.module)
    except UdiError as error:
        yield CheckFinding("modules", FAILS, error.message, image, remedy=error.hint)
        return
    known = site.words("config", "modules")
    if not site.knows("config"):
        yield CheckFinding("modules", UNKNOWN, "the site's modules are not known", image)
        return
    there = Evidence("config.modules", ", ".join(known))
    gone = [name for name in wanted if name not in known and name != "none"]
    if gone:
        what = f"the site has no module {gone[0]}"
        yield CheckFinding("modules", FAILS, what, image, there, f"one of {', '.join(known)}")
    else:
        yield CheckFinding("modules", RUNS, "the modules are there", image, there)


def gpus_given(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Findings:
    """Tell whether --gpu has anything to give there."""
    wish = asked.request.gpu
    if wish is None or wish == "none":
        return
    image = Evidence("--gpu", wish or "auto")
    if not site.knows("gpus"):
        what = "whether the site has GPUs is not known"
        yield CheckFinding("gpus", UNKNOWN, what, image, remedy="capture it on a compute node")
        return
    vendors = {str(one.get("vendor", "")) for one in site.rows("gpus")}
    there = Evidence("gpus", ", ".join(sorted(vendors)) or "none")
    vendor = wish if wish in ("nvidia", "amd", "intel") else ""
    if not vendors or (vendor and vendor not in vendors):
        what = f"the site has no {vendor or 'GPU'} for --gpu"
        yield CheckFinding("gpus", FAILS, what, image, there, "leave --gpu out, or another site")
    else:
        yield CheckFinding("gpus", RUNS, "--gpu finds GPUs there", image, there)


def wants_gpu(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Findings:
    """Tell that an image which asks for GPUs needs --gpu."""
    env = dict(str(pair).partition("=")[::2] for pair in facts.get("env") or ())
    if asked.request.gpu is not None or "gpu" in (asked.request.module or ""):
        return
    if env.get("NVIDIA_VISIBLE_DEVICES", "void") in ("void", "none", "") and not env.get(
        "NVIDIA_REQUIRE_CUDA"
    ):
        return
    image = Evidence("ENV NVIDIA_VISIBLE_DEVICES", env.get("NVIDIA_VISIBLE_DEVICES", ""))
    if any(one.get("vendor") == "nvidia" for one in site.rows("gpus")):
        yield CheckFinding(
            "gpus",
            WITH,
            "the image is for NVIDIA GPUs, which the site has: they go in with --gpu",
            image,
            Evidence("gpus", "nvidia"),
            options=("--gpu",),
        )
