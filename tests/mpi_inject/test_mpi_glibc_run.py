"""Programs of old images on the host's newer C library: built inside, run by the host's mpiexec.

The images are Debian's suites with compilers and both MPIs; what they build runs with --mpi. Which
of them are older than the host depends on the machine: `.ci/distribution trixie` makes a newer one.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import mpi, mpiprogs
from tests.kit.places import PROGRAMS, TREE

pytestmark = [
    pytest.mark.needs("userns", "fuse", "squashfuse", "mmdebstrap", "mksquashfs"),
    pytest.mark.needs("mpich", "openmpi"),
]
RANKS = 2
_NOTED: dict[tuple[str, str], str] = {}
NEXT = "static __thread int at = 41; int next(void) { return ++at; }"
WORDS = ("mpi", "threads", "cancel", "dlopen", "libm", "iconv", "locale", "getaddrinfo", "getpwuid")
BUILD = """
set -e
cd $1
printf '%s' "$3" >next.c
gcc -shared -fPIC -o libnext.so next.c
mpicc.$2 -g -O1 -o plain oldglibc.c -ldl -lm -lpthread
# Without MPI's C++ bindings, which Open MPI 5 has not.
mpicxx.$2 -O1 -DOMPI_SKIP_MPICXX -DMPICH_SKIP_MPICXX -Wl,--as-needed -o c++ oldglibc.cc -lpthread
# gfortran 9 has not the option that 10 and later need.
mpif90.$2 -O1 -cpp -DMODULE -fallow-argument-mismatch -o fortran mpifortran.f90 ||
    mpif90.$2 -O1 -cpp -DMODULE -o fortran mpifortran.f90
mkdir -p locale
localedef -i de_DE -f UTF-8 locale/de_DE.UTF-8 || test -f locale/de_DE.UTF-8/LC_TIME
getconf GNU_LIBC_VERSION
"""


HOST = str(os.confstr("CS_GNU_LIBC_VERSION"))
"""As getconf says it: "glibc 2.36"."""


def udi_run(user: User, family: str, image: str, *words: str, ranks: int = RANKS) -> str:
    """Run words in the image with the host's MPI; return what they say."""
    argv = [*mpi.launcher(f"debian-{family}", ranks), str(TREE / "bin/udi-run"), f"--mpi={family}"]
    env = mpi.environment(user, f"debian-{family}")
    done = user.run(*argv, mpi.pulled(image), *words, env=env)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def build(user: User, family: str, image: str, folder: Path) -> str:
    """Compile the programs inside the image, on its own C library, whose version is returned."""
    for name in ("oldglibc.c", "oldglibc.cc", "mpifortran.f90"):
        (folder / name).write_bytes((PROGRAMS / name).read_bytes())
    os.chmod(folder, 0o777)
    env = mpi.environment(user, f"debian-{family}")
    argv = [str(TREE / "bin/udi-run"), mpi.pulled(image), "sh", "-c", BUILD, "sh"]
    done = user.run(*argv, str(folder), family, NEXT, env=env, timeout=300)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the image is made at the first time, of 500 MB
@pytest.mark.parametrize("family", ["mpich", "openmpi"])
@pytest.mark.parametrize("suite", mpi.SUITES)
def test_programs_of_a_suite(suite: str, family: str, user: User, tmp_path: Path) -> None:
    image = f"tools-{suite}"
    own = build(user, family, image, tmp_path)
    env = ["env", f"LOCPATH={tmp_path}/locale"]
    out = udi_run(user, family, image, *env, f"{tmp_path}/plain", f"{tmp_path}/libnext.so")
    assert [line for line in out.splitlines() if line.startswith("ok ")] == [
        f"ok {word}" for word in WORDS
    ], out
    assert "BAD" not in out
    newer = mpi.needed_glibc(f"debian-{family}") > int(own.rpartition(".")[2])
    assert f"libc {HOST if newer else own}, ranks {RANKS}" in out, out
    _NOTED[suite, family] = "the host's" if newer else "its own"
    assert udi_run(user, family, image, f"{tmp_path}/c++") == "ok c++\n"
    out = udi_run(user, family, image, f"{tmp_path}/fortran")
    assert out.count(" bad=0 ") == RANKS, out
    gdb = ["gdb", "-nx", "-batch", "-ex", "handle SIG32 nostop noprint pass", "-ex", "break here"]
    gdb += ["-ex", "run", "-ex", "bt", "-ex", "continue", "--args"]
    out = udi_run(user, family, image, *gdb, f"{tmp_path}/plain", f"{tmp_path}/libnext.so", ranks=1)
    assert re.search(r"#0 +here .*\n#1 .* threads .*\n#2 .* main ", out), out
    # The one of Debian 11 reads no library with DT_RELR, as glibc 2.36 and later are.
    assert "libthread_db enabled" in out or (suite == "bullseye" and newer), out


@pytest.mark.slow
def test_the_table_of_the_documentation() -> None:
    """This machine's column of it, of what ran before in this session; UDI_DOCS=write writes it."""
    path = Path(os.environ.get("UDI_DOCS_MPI", TREE / "docs/mpi.md"))
    head, begin, rest = path.read_text().partition("<!-- pairs of C libraries -->\n")
    old, end, tail = rest.partition("<!-- end of them -->")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in old.splitlines()]
    host = mpiprogs.codename()
    column = lines[0].index(host if host in lines[0] else "sid")
    for line in lines[2:]:
        suite, _, family = line[0].partition(", ")
        line[column] = _NOTED.get((suite, family), line[column])
    new = "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("| --- ", "|---")
    new = new.replace("|--- |", "|---|")
    if os.environ.get("UDI_DOCS") == "write":
        path.write_text(head + begin + new + end + tail)
    assert new == old or os.environ.get("UDI_DOCS") == "write"


def test_a_real_pair_of_this_machine(user: User) -> None:
    """Bullseye's Python, perl, iconv, getent on this machine's glibc, which its MPI needs."""
    script = (
        "ldd /bin/ls | grep -c '=> /lib'; iconv -f UTF-8 -t EUC-JP </dev/null && echo iconv;"
        " export GCONV_PATH=/usr/lib/x86_64-linux-gnu/gconv;"
        " iconv -f UTF-8 -t EUC-JP </dev/null && echo path;"
        " getent hosts localhost | tr -s ' '; perl -e 'print exp(1), qq(\\n)';"
        " python3 -c 'import ssl, sqlite3, ctypes, threading, platform; print(platform.libc_ver())'"
    )
    out = udi_run(user, "mpich", "bullseye-mpich", "sh", "-c", script, ranks=1).splitlines()
    assert int(out[0]) >= 2, out
    assert "iconv" in out and "path" in out and "2.71828182845905" in out
    assert str(tuple(HOST.split())) in out, out


def test_what_explain_says(user: User) -> None:
    """Each bind of glibc with its reason; a rank's files are those of the host."""
    argv = [str(TREE / "bin/udi-run"), "--mpi", "--explain=json", mpi.pulled("bullseye-mpich")]
    done = user.run(*argv, "python3", env=mpi.environment(user, "debian-mpich"))
    assert not done.returncode, done.stderr
    steps = json.loads(done.stdout)["steps"]
    binds = {step["target"]: step["reason"] for step in steps if "the host's lib" in step["reason"]}
    reason = next(
        why for target, why in binds.items() if target.rpartition("/")[2] == "libc-2.31.so"
    )
    assert re.match(r"the host's libc\.so\.6: libmpi(ch)?\.so\.12 needs GLIBC_2\.", reason), reason


def test_never(user: User) -> None:
    env = mpi.environment(user, "debian-mpich")
    argv = [str(TREE / "bin/udi-run"), "--mpi", "--mpi-glibc=never", mpi.pulled("bullseye-mpich")]
    done = user.run(*argv, "python3", env=env)
    assert done.returncode == 125
    assert ", and the image's glibc has GLIBC_2.30\n" in done.stderr
    assert "hint: --mpi-glibc=auto brings the host's along" in done.stderr


@pytest.mark.parametrize("place", ["/usr/lib/x86_64-linux-gnu", "/lib64", "/usr"])
def test_a_volume_over_the_images_glibc(place: str, user: User) -> None:
    """An image whose C library is replaced by a volume: what was noted of it is no longer so."""
    env = mpi.environment(user, "debian-mpich")
    volume = f"--volume={user.home}:{place}"
    argv = [str(TREE / "bin/udi-run"), "--mpi", volume, mpi.pulled("bullseye-mpich")]
    done = user.run(*argv, "python3", env=env)
    assert done.returncode == 125
    assert f"volume {place}: it covers " in done.stderr, done.stderr
    assert "as all of its C library must" in done.stderr


MOVED = """
    set -e
    mkdir $0/empty
    echo /usr/lib64 >$0/ld.so.conf
    mount --bind /usr/lib/x86_64-linux-gnu /usr/lib64
    mount --bind $0/empty /usr/lib/x86_64-linux-gnu
    # Linked statically; without what it writes no other program finds its libraries.
    /sbin/ldconfig -X -C $0/ld.so.cache -f $0/ld.so.conf
    /usr/lib64/ld-linux-x86-64.so.2 --library-path /usr/lib64 \\
        /usr/bin/mount --bind $0/ld.so.cache /etc/ld.so.cache
    exec setpriv --ambient-caps=-all --inh-caps=-all "$@"
"""


def test_a_host_of_another_layout(user: User, tmp_path: Path) -> None:
    """Its libraries are in /usr/lib64, as Red Hat's and SUSE's are: Debian's folder is empty.

    The image keeps its own, with iconv's modules in it. What can't be made here is a C library that
    was compiled for that place: the one of this host still looks into Debian's folder too.
    """
    moved = ["unshare", "--user", "--map-current-user", "--keep-caps", "--mount"]
    moved += ["sh", "-c", MOVED, str(tmp_path)]
    # Two ranks, which do as every pair does.
    host, image = "debian-mpich", mpi.pulled("bullseye-mpich")
    env = mpi.environment(user, host)
    run = [str(TREE / "bin/udi-run"), "--mpi"]
    argv = [*moved, *mpi.launcher(host, RANKS), *run, image, "python3", "-c", mpi.PYTHON]
    done = user.run(*argv, env=env)
    assert not done.returncode, done.stdout + done.stderr
    mpi.verify(done.stdout, host, RANKS)
    # The C library is the host's, and finds its modules in the image.
    words = "getconf GNU_LIBC_VERSION; iconv -f UTF-8 -t EUC-JP </dev/null && echo iconv"
    shutil.rmtree(tmp_path / "empty")
    done = user.run(*moved, *run, image, "sh", "-c", words, env=env)
    assert done.stdout == f"{HOST}\niconv\n", done.stdout + done.stderr
    shutil.rmtree(tmp_path / "empty")
    done = user.run(*moved, *run, "--explain=json", image, "sh", env=env)
    steps = json.loads(done.stdout)["steps"]
    (libc,) = [s for s in steps if s["target"].endswith("/libc-2.31.so")]
    assert libc["source"] == "/usr/lib64/libc.so.6"


@pytest.mark.needs("strace")
def test_a_file_of_the_host_that_vanishes_between_plan_and_bind(user: User) -> None:
    """Named, and no half of the family is left: the command is not run."""
    env = mpi.environment(user, "debian-mpich")
    argv = [str(TREE / "bin/udi-run"), "--mpi", "--explain=json", mpi.pulled("bullseye-mpich")]
    steps = json.loads(user.run(*argv, "python3", env=env).stdout)["steps"]
    (libc,) = [s for s in steps if s["target"].endswith("/libc-2.31.so")]
    words = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", f"/host{libc['source']}"]
    words += ["-e", "trace=newfstatat", "-e", "inject=newfstatat:error=ENOENT"]
    argv = [str(TREE / "bin/udi-run"), "--mpi", mpi.pulled("bullseye-mpich"), "echo", "ran"]
    done = user.run(*words, *argv, env=env)
    assert (done.returncode, done.stdout) == (125, "")
    assert f"mounting {libc['source']} on " in done.stderr, done.stderr
    assert "failed: No such file or directory" in done.stderr and "try again" in done.stderr


def test_python_and_its_children_without_a_variable(user: User) -> None:
    """`env -i` keeps the C library: it is bound, not searched for."""
    code = "print({w for w in open('/proc/self/maps').read().split() if '/libc' in w})"
    words = ["env", "-i", "/usr/bin/python3", "-c", code]
    out = udi_run(user, "mpich", "bullseye-mpich", *words, ranks=1)
    assert "libc-2.31.so" in out and "libc.so.6" not in out
    words = ["env", "-i", "/usr/bin/getconf", "GNU_LIBC_VERSION"]
    out = udi_run(user, "mpich", "bullseye-mpich", *words, ranks=1)
    assert out == HOST + "\n"
