"""Translate the containerEdits of CDI devices into steps for our container.

Device nodes are checked and not made, since /dev is the host's own. Hooks are programs that change
a root file system as root: what those of NVIDIA's specifications do is done by steps, any other
hook is refused by its name. Libraries for which there is an update-ldcache hook are put into LIB,
which is in the search path; everything else is put where the specification says.
"""

import os
from stat import S_ISSOCK

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.cdi.registry import Chosen
from rootless_udi.mpi_inject.cdi.spec import Spec
from rootless_udi.mpi_inject.libraries.nvidia_names import DEFAULT, NEUTRAL, is_card
from rootless_udi.mpi_inject.libraries.placing import (
    BIN,
    LIB,
    SHARED,
    PlacedLibrary,
    denied,
    is_library,
    library,
    no_access,
    place,
)
from rootless_udi.mpi_inject.libraries.rooted import exists, under
from rootless_udi.plan.steps import Directory, Env, Mount, Step, Symlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_FLAGS = {
    "ro": "ro",
    "rw": "",
    "nosuid": "nosuid",
    "nodev": "nodev",
    "noexec": "noexec",
    "suid": "",
    "dev": "",
    "exec": "",
    "bind": "",
    "rbind": "rec",
    "private": "private",
    "rprivate": "private",
    "slave": "slave",
    "rslave": "slave",
}
"""Mount option of CDI -> word of a bind step; "" for what a bind always does or never may."""

_FIRMWARE = ("/lib/firmware/", "/usr/lib/firmware/")
_GRAPHICS = ("/usr/share/", "/etc/vulkan/", "/etc/OpenCL/", "/etc/X11/")

_NOTHING_TO_DO = {
    "chmod": "the folders of /dev are the host's own",
    "disable-device-node-modification": "nobody in the container may make device nodes",
    "update-application-profile": "every card of the node can be seen",
}


class StaleError(UdiError):
    """The specification names a file that the host no longer has."""


class Edits(Record):
    """What the edits come to.

    `libraries` are those that are put into LIB. `compat`: there is an enable-cuda-compat hook,
    which asks to prefer the image's CUDA compatibility libraries.
    """

    steps: tuple[Step, ...]
    environment: tuple[Env, ...]
    libraries: tuple[PlacedLibrary, ...]
    notes: tuple[str, ...]
    compat: bool = False


class _Work:
    """The lists to which each specification adds."""

    def __init__(self, root: str, graphics: bool) -> None:
        self.root = root
        self.graphics = graphics
        self.steps: list[Step] = []
        self.environment: list[Env] = []
        self.libraries: list[PlacedLibrary] = []
        self.notes: list[str] = []
        self.folders: set[str] = set()
        self.compat = False
        self.opened = False
        self.closed = ""


def apply(devices: "Iterable[Chosen]", root: str, wanted: "Iterable[str]" = DEFAULT) -> Edits:
    """Return what the chosen devices of the specifications put into a container.

    `wanted` are NVIDIA's driver capabilities; other vendors' devices have none.

    Raises UdiError for an edit that can't be made here and for a device that the caller may not
    use, StaleError for a file that is missing on the host.
    """
    work = _Work(root, bool({"graphics", "display"} & set(wanted)))
    for chosen in devices:
        spec = chosen.spec
        every = [spec.edits, *(spec.devices[name] for name in chosen.names)]
        hooks = [_hook(spec, hook) for edits in every for hook in edits.get("hooks", ())]
        for word, arguments in hooks:
            if word == "update-ldcache":
                work.folders.update(_options(spec, word, arguments, "--folder"))
        if not work.folders and spec.kind.startswith("nvidia.com/"):
            work.folders.update(_folders(every))
        for edits in every:
            _unsupported(spec, edits)
            _nodes(work, chosen, edits)
            _mounts(work, spec, edits)
            for item in edits.get("env", ()):
                name, _equals, value = item.partition("=")
                if name != "NVIDIA_VISIBLE_DEVICES":
                    work.environment.append(Env("set", name, value, reason=f"CDI: {spec.path}"))
        for word, arguments in hooks:
            _done(work, spec, word, arguments)
        if work.closed and not work.opened:
            raise no_access(work.root, work.closed, denied(work.root, work.closed))
    driver = place(work.root, work.libraries, "driver library of the CDI specification")
    steps = _unique([*work.steps, *driver])
    return Edits(
        tuple(steps),
        tuple(dict.fromkeys(work.environment)),
        tuple(work.libraries),
        tuple(dict.fromkeys(work.notes)),
        work.compat,
    )


def _folders(every: "list[dict[str, Any]]") -> set[str]:
    """Return the folders of mounted libraries, where no update-ldcache hook names them."""
    targets = [m["containerPath"].rpartition("/") for e in every for m in e.get("mounts", ())]
    return {folder for folder, _slash, name in targets if is_library(name)}


def _unique(steps: list[Step]) -> list[Step]:
    """Keep the first step of each target; mounts and directories go before links."""
    found: dict[str, Step] = {}
    for step in sorted(steps, key=lambda s: isinstance(s, Symlink)):
        found.setdefault(step.target, step)
    return list(found.values())


def _unsupported(spec: Spec, edits: "dict[str, Any]") -> None:
    for field, why in (
        ("netDevices", "moving a network interface needs root"),
        ("intelRdt", "resctrl needs root"),
    ):
        if edits.get(field):
            raise UdiError(
                f"CDI file {spec.path}: {field} can't be done here: {why}",
                "choose a device without it",
            )


def _nodes(work: _Work, chosen: Chosen, edits: "dict[str, Any]") -> None:
    """Check device nodes; bind those that have another name on the host.

    If "all" cards are asked for, the caller must be allowed to open one of them at least. He need
    not be for nodes that only graphics uses (few compute users are in the group video). All others
    he must be able to open.
    """
    spec = chosen.spec
    for gid in edits.get("additionalGids", ()):
        if gid and gid not in (os.getgid(), *os.getgroups()):
            work.notes.append(f"CDI: group {gid} of {spec.path} is not yours and can't be added")
    closed, opened = "", False
    for node in edits.get("deviceNodes", ()):
        source = node.get("hostPath") or node["path"]
        how = node.get("permissions") or "rw"
        flags = (os.R_OK if "r" in how else 0) | (os.W_OK if "w" in how else 0)
        why = denied(work.root, source, flags)
        if why == "does not exist":
            raise _stale(spec, source)
        name = source.rpartition("/")[2]
        display = name.startswith("card") or spec.kind.startswith("nvidia.com/")
        display = display and source.startswith("/dev/dri/")
        card = not display and (is_card(name) or name.startswith(("renderD", "accel")))
        if why:
            if not display and not (card and chosen.every):
                raise no_access(work.root, source, why)
            work.notes.append(f"{source}: {why}")
            closed = closed or ("" if display else source)
            continue
        opened = opened or card
        if source != node["path"]:
            reason = f"device of the CDI specification {spec.path}"
            work.steps.append(Mount(node["path"], under(work.root, source), reason=reason))
    work.opened = work.opened or opened
    work.closed = work.closed or closed


def _stale(spec: Spec, path: str) -> StaleError:
    return StaleError(
        f"CDI file {spec.path} is out of date: {path} does not exist on this host",
        "ask the site to write it anew: "
        + (
            "nvidia-ctk cdi generate"
            if spec.kind.startswith("nvidia.com/")
            else "its vendor's tool"
        )
        + ", or `udi gpu cdi`",
    )


def _mounts(work: _Work, spec: Spec, edits: "dict[str, Any]") -> None:
    for mount in edits.get("mounts", ()):
        source, target = mount["hostPath"], os.path.normpath(mount["containerPath"])
        kind, options = mount.get("type", ""), mount.get("options", [])
        if kind not in ("", "none", "bind") and not {"bind", "rbind"} & set(options):
            raise UdiError(
                f"CDI file {spec.path}: a mount of type {kind} on {target} can't be done here",
                "only bind mounts are",
            )
        unknown = [o for o in options if o not in _FLAGS]
        if unknown:
            raise UdiError(
                f"CDI file {spec.path}: unknown mount option {unknown[0]!r} on {target}",
                f"known are {', '.join(_FLAGS)}",
            )
        if not exists(work.root, source):
            raise _stale(spec, source)
        flags = tuple(dict.fromkeys(f for o in options if (f := _FLAGS[o])))
        if not _driver_file(work, spec, source, target, flags):
            reason = f"mount of the CDI specification {spec.path}"
            source, target = _socket(work.root, source, target)
            place = under(work.root, source)
            work.steps.append(Mount(target, place, options=flags, reason=reason))


def _driver_file(work: _Work, spec: Spec, source: str, target: str, flags: tuple[str, ...]) -> bool:
    """Do a mount that needs no mount point in the image; return whether it was one.

    So the usual specification needs no overlay over a read-only image: libraries and tools are put
    into a folder in memory, and files for graphics alone are left out unless graphics is asked for.
    """
    folder, _slash, name = target.rpartition("/")
    nvidia = spec.kind.startswith("nvidia.com/")
    if name.partition(".so")[0] in NEUTRAL and is_library(name):
        work.notes.append(f"{source}: left to the image, a vendor-neutral library")
    elif folder in work.folders and is_library(name):
        work.libraries.append(library(work.root, source, name))
        # In WSL libraries open each other by their full paths, so they must be there.
        return not target.startswith("/usr/lib/wsl/")
    elif source == target and _within(target, SHARED):
        work.notes.append(f"{target}: already there, the host's own")
    elif nvidia and target.startswith(_FIRMWARE):
        work.notes.append(f"{target}: left out, the kernel reads firmware on the host")
    elif nvidia and (target.startswith(_GRAPHICS) or "/xorg/" in target) and not work.graphics:
        work.notes.append(f"{target}: left out, NVIDIA_DRIVER_CAPABILITIES has no graphics")
    elif nvidia and folder in ("/usr/bin", "/bin") and name.startswith("nvidia-"):
        reason = f"driver tool of the CDI specification {spec.path}"
        place = under(work.root, source)
        work.steps.append(Mount(f"{BIN}/{name}", place, options=flags, reason=reason))
    else:
        return False
    return True


def _socket(root: str, source: str, target: str) -> tuple[str, str]:
    """Return the folders to bind for a socket, where it is alone in one; else the socket itself.

    A daemon that is restarted makes a new socket, which a bind of the old one would not show.
    """
    try:
        mode = os.stat(under(root, source)).st_mode
    except OSError:
        return source, target
    folder, _slash, name = source.rpartition("/")
    there, _slash, same = target.rpartition("/")
    own = folder.rpartition("/")[2] == there.rpartition("/")[2] and folder.count("/") > 1
    if S_ISSOCK(mode) and name == same and own and folder not in ("/var/run", "/run/user"):
        return folder, there
    return source, target


def _within(path: str, folders: "Iterable[str]") -> bool:
    return any(path.startswith(f + "/") for f in folders)


def _hook(spec: Spec, hook: "dict[str, Any]") -> tuple[str, list[str]]:
    """Return a hook's word and arguments; raises UdiError for one that is not known.

    args is [PROGRAM, WORD, ...], for nvidia-ctk [PROGRAM, "hook", WORD, ...].
    """
    program = hook["path"].rpartition("/")[2]
    args = list(hook.get("args", ()))[1:]
    if args[:1] == ["hook"]:
        args = args[1:]
    while args and args[0].startswith("-"):
        args = args[1:]
    word = args[0] if args else ""
    known = ("update-ldcache", "create-symlinks", "enable-cuda-compat", *_NOTHING_TO_DO)
    if program not in ("nvidia-ctk", "nvidia-cdi-hook") or word not in known:
        raise UdiError(
            f"CDI file {spec.path}: unknown hook {program} {word}".rstrip(),
            f"known are nvidia-cdi-hook's {', '.join(known)}; `--gpu=none` starts without a GPU",
        )
    return word, args[1:]


def _options(spec: Spec, word: str, arguments: list[str], option: str) -> list[str]:
    """Return the values of "--option VALUE" and "--option=VALUE" among `arguments`."""
    found = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            message = f"CDI file {spec.path}: hook {word}: stray argument {argument!r}"
            raise UdiError(message, "mend the CDI file")
        if not equals:
            value = next(rest, "")
        if name == option:
            found += value.split(",")
    return found


def _done(work: _Work, spec: Spec, word: str, arguments: list[str]) -> None:
    """Add the steps that do what a hook does."""
    if word == "update-ldcache":
        work.notes.append(f"hook update-ldcache: {LIB} at the end of LD_LIBRARY_PATH instead")
    elif word == "enable-cuda-compat":
        work.compat = True
    elif word == "create-symlinks":
        for link in _options(spec, word, arguments, "--link"):
            _symlink(work, spec, link)
    else:
        if word == "chmod":
            _of_dev(spec, _options(spec, word, arguments, "--path"))
        work.notes.append(f"hook {word}: nothing to do, {_NOTHING_TO_DO[word]}")


def _of_dev(spec: Spec, paths: "Iterable[str]") -> None:
    """Raise UdiError for a chmod outside /dev; in /dev, the host's own, nothing is changed."""
    for path in paths:
        if not _within(os.path.normpath(path), ("/dev",)):
            raise UdiError(
                f"CDI file {spec.path}: hook chmod of {path} can't be done here",
                "only folders of /dev, which are the host's own, can be left as they are",
            )


def _symlink(work: _Work, spec: Spec, link: str) -> None:
    """Add the link of "TARGET::LINK"; one in a folder of libraries is made in LIB instead."""
    to, colons, where = link.partition("::")
    where = os.path.normpath(where)
    if not to or not colons or not where.startswith("/") or where.startswith("//"):
        raise UdiError(
            f"CDI file {spec.path}: hook create-symlinks: {link!r} is not TARGET::LINK",
            "mend the CDI file",
        )
    reason = f"symbolic link of the CDI specification {spec.path}"
    for folder in sorted(work.folders, key=len, reverse=True):
        if where.startswith(folder + "/"):
            name = where[len(folder) + 1 :]
            if name.partition(".so")[0] in NEUTRAL:
                return
            if to.startswith(folder + "/"):
                to = "/".join([".."] * name.count("/") + [to[len(folder) + 1 :]])
            if "/" in name:
                parent = f"{LIB}/{name.rpartition('/')[0]}"
                work.steps.append(Directory(parent, reason=reason))
            work.steps.append(Symlink(f"{LIB}/{name}", to, reason=reason))
            return
    work.steps.append(Symlink(where, to, reason=reason))
