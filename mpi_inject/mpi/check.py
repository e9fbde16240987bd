"""`udi mpi check` and `udi mpi profile capture`: reports and profiles. Not for the launch path."""

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from rootless_udi.base import program
from rootless_udi.base.errors import UdiError, counted
from rootless_udi.mpi_inject.libraries import abi
from rootless_udi.mpi_inject.libraries.search import HostLibraries, is_glibc
from rootless_udi.mpi_inject.libraries.symbols import newest
from rootless_udi.mpi_inject.mpi import discover, planner
from rootless_udi.mpi_inject.mpi.discover import HostMpi
from rootless_udi.mpi_inject.mpi.gather import PLUGIN_FOLDERS
from rootless_udi.mpi_inject.mpi.profiles import Profile
from rootless_udi.plan.steps import Mount

_PROBE = """
import ctypes, json, os, sys
def mapped():
    with open('/proc/self/maps') as file:
        words = [line.split(None, 5) for line in file]
    return {w[5].strip() for w in words if len(w) == 6 and w[5].startswith('/')}
before = mapped()
lib = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
text, size = ctypes.create_string_buffer(8192), ctypes.c_int()
failed = lib.MPI_Init(None, None)
lib.MPI_Get_library_version(text, ctypes.byref(size))
opened = set()
for fd in os.listdir('/proc/self/fd'):
    try:
        opened.add(os.readlink('/proc/self/fd/' + fd))
    except OSError:
        pass
found = {'failed': failed, 'version': text.value.decode(errors='replace').split('\\n')[0],
         'mapped': sorted(mapped() - before), 'opened': sorted(o for o in opened if o[0] == '/')}
path = sys.argv[2] + '.' + str(os.getpid())
with open(path, 'w') as file:
    json.dump(found, file)
os.rename(path, sys.argv[2])
if not failed:
    lib.MPI_Finalize()
"""
"""A Python program that starts MPI, so that no compiler is needed. The files that it maps and opens
are those that any MPI program needs."""

_NO_DEVICES = ("/dev/null", "/dev/zero", "/dev/shm", "/dev/pts", "/dev/tty", "/dev/urandom")


def check(
    image: dict[str, Any],
    environ: Mapping[str, str],
    site: Iterable[Profile] = (),
    wanted: str = "",
    compat: str = "",
    root: str = "/",
    glibc: str = "auto",
) -> tuple[str, bool]:
    """Return the report of `udi mpi check` and whether a launch would succeed.

    `image` is the facts' "elf" part, `wanted`, `compat` and `glibc` the values of --mpi,
    --mpi-compat and --mpi-glibc.
    Every MPI and profile of the host is tried where none is named; nothing is run.
    """
    profiles = tuple(site)
    lines = ["image", *("  " + line for line in _image(image)), "host"]
    host = HostLibraries(root, (p for p in environ.get("LD_LIBRARY_PATH", "").split(":") if p))
    for one in discover.find(environ, host):
        lines.append("  " + _host(one, host))
    lines += [f"  profile {p.name}: {p.description or p.prefix or p.family}" for p in profiles]
    lines.append(f"--mpi={wanted or 'auto'} --mpi-compat={compat or 'major'} --mpi-glibc={glibc}")
    text, good = _verdict(wanted, compat, image, environ, profiles, root, glibc)
    lines += ["  " + line for line in text]
    if not wanted and not good:
        for profile in profiles:
            if profile.family:
                text, _ = _verdict(profile.name, compat, image, environ, profiles, root, glibc)
                lines += [f"--mpi={profile.name}", *("  " + line for line in text)]
    return "\n".join(lines) + "\n", good


def _verdict(
    wanted: str,
    compat: str,
    image: dict[str, Any],
    environ: Mapping[str, str],
    site: tuple[Profile, ...],
    root: str,
    glibc: str,
) -> tuple[list[str], bool]:
    try:
        found = planner.inject(wanted, compat, image, environ, site, root, glibc=glibc)
    except UdiError as error:
        return [
            "refused: " + error.message,
            *(["hint: " + error.hint] if error.hint else []),
        ], False
    binds = [s for s in found.steps if isinstance(s, Mount)]
    over = [s for s in binds if not s.target.startswith(planner.FOLDER)]
    lines = [f"possible, with {counted(len(binds), 'bind')}"]
    lines += [f"over {s.target}: {s.reason}" for s in over]
    lines += [f"beside: {s.reason}" for s in binds if s.target.startswith(planner.LIB)]
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"warning: {text.removeprefix('--mpi: ')}" for text in found.warnings]
    return lines, True


def _image(image: dict[str, Any]) -> list[str]:
    versions = [v for v in image["libc_versions"] if v.startswith("GLIBC_2")]
    libc = f"glibc {versions[-1].removeprefix('GLIBC_')}" if versions else image["libc"] or "none"
    lines = [f"{image['machine'] or 'no ELF file'}, C library: {libc}"]
    for one in image["libraries"]:
        if one["family"]:
            numbers = ".".join(map(str, one["version"])) or "unknown"
            release = f" ({one['release']})" if one["release"] else ""
            name = f"{abi.NAMES[one['family']]}, {one['role']}"
            lines.append(f"{one['path']}: {name}, version {numbers}{release}")
    for family, one in image["consumers"].items():
        files = ", ".join(one["files"][:3]) + (", ..." if one["count"] > 3 else "")
        lines.append(
            f"{counted(one['count'], 'program')} of {abi.NAMES.get(family, family)} ({files}):"
            f" {counted(len(one['symbols']), 'MPI symbol')}, by {', '.join(one['libraries'])}"
        )
    if image["static"]:
        lines.append(f"MPI linked in statically: {', '.join(image['static'])}")
    if not image["consumers"] and not image["static"]:
        lines.append("no MPI program")
    if image["unread"]:
        lines.append(f"not read (damaged or too large): {', '.join(image['unread'])}")
    return lines


def _host(one: HostMpi, host: HostLibraries) -> str:
    texts = []
    for name, path in one.files.items():
        found = host.load(path, name)
        if found and name in abi.MAIN:
            library = discover.library(host, found, exact=True)
            needs = newest(v for f, vs in found.elf.needs.items() if is_glibc(f) for v in vs)
            glibc = [v for v in needs if v.startswith("GLIBC_2")]
            texts.append(f"{library.text()}, needs {glibc[-1] if glibc else 'no glibc'}")
    return f"{one.text()}: {'; '.join(texts)}"


def capture(
    name: str,
    environ: Mapping[str, str],
    launcher: Iterable[str] = (),
    wanted: str = "",
    timeout: float = 60,
) -> str:
    """Return a profile (TOML) of the MPI on the PATH, from what an MPI hello of two ranks opens.

    `launcher` is the command before the program ("srun -n 2 --mpi=pmi2"), by default the mpiexec
    beside the library; `wanted` may name a family. Raises UdiError where no MPI is found or the
    hello fails. Takes seconds.
    """
    from tempfile import TemporaryDirectory

    host = HostLibraries("/", (p for p in environ.get("LD_LIBRARY_PATH", "").split(":") if p))
    found = [m for m in discover.find(environ, host) if not wanted or wanted in m.families]
    if not found:
        raise UdiError(
            "capturing a profile: no MPI is found on this host", "load the MPI's module first"
        )
    one = found[0]
    main = next(path for file, path in one.files.items() if file in abi.MAIN)
    words = list(launcher) or _launcher(one, environ)
    with TemporaryDirectory(prefix="udi-mpi-") as folder:
        out = f"{folder}/found"
        argv = [*words, *program.argv(_PROBE, main, out)]
        try:
            run = subprocess.run(
                argv,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
            problem = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
        except OSError as error:
            problem = f"{argv[0]}: {error.strerror}"
        except subprocess.TimeoutExpired:
            problem = f"no end within {timeout:.0f} s"
        if not os.path.exists(out):
            raise UdiError(
                f"capturing a profile of {one.text()}: an MPI hello failed: {problem}",
                "give the launcher that works here (--launcher 'srun -n 2 --mpi=pmi2')",
            )
        with open(out) as file:
            seen = json.load(file)
    return _toml(name, one, seen)


def _launcher(one: HostMpi, environ: Mapping[str, str]) -> list[str]:
    """Return the mpiexec of an MPI's own tree, else that of the PATH, of its family if marked."""
    family = "openmpi" if abi.OPENMPI in one.families else "mpich"
    folders = [f"{one.prefix}/bin"] if one.prefix else []
    folders += [p for p in environ.get("PATH", "").split(":") if p]
    for tool in (f"mpiexec.{family}", *(["mpiexec.hydra"] if family == "mpich" else []), "mpiexec"):
        for folder in folders:
            if os.access(f"{folder}/{tool}", os.X_OK):
                more = ["--oversubscribe"] if family == "openmpi" else []
                return [f"{folder}/{tool}", *more, "-n", "2"]
    return []


def _toml(name: str, one: HostMpi, seen: dict[str, Any]) -> str:
    """Return the profile's text."""
    host = HostLibraries("/", ())
    mains = list(one.files.values())
    loaded = [f for f in map(host.load, mains) if f]
    skip = {f.real for f in loaded}
    needed = {f.real for f in host.closure(loaded, lambda *_: False)[0]} - skip
    mapped = [p for p in seen["mapped"] if ".so" in p.rpartition("/")[2] and p not in skip]
    mapped = [p for p in mapped if not is_glibc(_soname(host, p))]
    # Plugins are put in by their folder (`gather.PluginTree`), so the profile need not list them.
    plugins = [p for p in mapped if p not in needed and not _by_name(host, p)]
    dependencies = [p for p in mapped if p in needed]
    optional = [p for p in mapped if p not in needed and p not in plugins]
    devices = {p for p in (*seen["mapped"], *seen["opened"]) if p.startswith("/dev/")}
    lists = {
        "libraries": mains,
        "dependencies": dependencies,
        "optional": optional,
        "devices": sorted(d for d in devices if not d.startswith(_NO_DEVICES)),
    }
    lines = [
        f"# MPI profile {name}: what two ranks of a hello on this host mapped and opened.",
        f"description = {_quoted(' '.join(seen['version'].split()))}",
        f"family = {_quoted(one.families[0])}",
    ]
    if one.prefix:
        lines.append(f"prefix = {_quoted(one.prefix)}")
    for key, values in lists.items():
        if values:
            inner = "".join(f"  {_quoted(v)},\n" for v in values)
            lines.append(f"{key} = [\n{inner}]")
    return "\n".join(lines) + "\n"


def _soname(host: HostLibraries, path: str) -> str:
    found = host.read(path)
    return (found.soname if found else "") or path.rpartition("/")[2]


def _by_name(host: HostLibraries, path: str) -> bool:
    """Tell whether a mapped file is a library that others need by name, and no plugin."""
    found = host.read(path)
    if path.split("/")[-2] in PLUGIN_FOLDERS:
        return False
    return bool(found and found.soname and abi.split(found.soname)[1])


def _quoted(text: str) -> str:
    """Return a TOML basic string, which JSON's strings are."""
    return json.dumps(text)
