"""perNodeCache: method, place, limits, and the programs' arguments; real mke2fs and fuse2fs."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.host import cachefacts
from rootless_udi.plan import pernodecache, volumes
from rootless_udi.plan.pernodecache import CacheFacts, FileCache, Place
from rootless_udi.plan.site import Site
from rootless_udi.plan.steps import Mount
from tests.conftest import User
from tests.kit.nodes import counted
from tests.kit.places import TREE

G = 1024**3
NODE = CacheFacts(
    8 * G,
    "this node's memory",
    (Place("/local", "", 50 * G), Place("/full", "", 5), Place("/closed", "no", 0)),
    "/sbin/mke2fs",
    "/bin/fuse2fs",
)


def steps(
    text: str, site: Site | None = None, facts: CacheFacts = NODE
) -> tuple[Mount | FileCache, ...]:
    return pernodecache.plan(volumes.parse(text), site or Site(), facts)


def test_in_memory() -> None:
    assert steps("/s:/c:perNodeCache=size=1G;/a:/b;/s:/d:perNodeCache=size=5000,bs=4k") == (
        Mount(
            "/c",
            "tmpfs",
            "tmpfs",
            ("nosuid", "nodev", "mode=755", f"size={G}"),
            True,
            "perNodeCache (--volume) in memory: method=cache.method, built-in default",
        ),
        Mount(
            "/d",
            "tmpfs",
            "tmpfs",
            ("nosuid", "nodev", "mode=755", "size=8192"),
            True,
            "perNodeCache (--volume) in memory: method=cache.method, built-in default",
        ),
    )


def test_in_a_file() -> None:
    (step,) = steps("/local:/c:perNodeCache=size=10G,method=file")
    assert isinstance(step, FileCache)
    assert (step.target, step.directory, step.size) == ("/c", "/local", 10 * G)
    assert step.reason == "perNodeCache (--volume) in a file in /local"
    argv = pernodecache.filled(step.mke2fs, "/dev/fd/5")
    assert (argv[0], argv[-1]) == ("/sbin/mke2fs", "/dev/fd/5")
    assert pernodecache.filled(step.fuse2fs, "/dev/fd/5", "/t")[:3] == [
        "/bin/fuse2fs",
        "/dev/fd/5",
        "/t",
    ]


def test_the_site_s_directories_and_method() -> None:
    site = Site(cache_paths=("/full", "/closed", "/local"), cache_method="file")
    (step,) = steps("/any:/c:perNodeCache=size=10G", site)
    assert isinstance(step, FileCache)
    assert step.directory == "/local"
    (step,) = steps("/any:/c:perNodeCache=size=1G,method=tmpfs", site)
    assert isinstance(step, Mount)
    both = volumes.parse("/any:/c:perNodeCache=size=1G;/other:/d:perNodeCache=size=1G;/a:/b")
    assert pernodecache.candidates(both, site, 8 * G) == ("/full", "/closed", "/local")
    assert pernodecache.candidates(both, Site(cache_method="file"), 8 * G) == ("/any", "/other")
    assert (
        pernodecache.candidates(both, Site(), 8 * G)
        == pernodecache.candidates(both, Site(), 0)
        == ()
    )
    assert pernodecache.candidates(both, Site(), 2 * G - 1) == ("/other",)


def test_more_than_the_memory_is_a_file_in_the_named_directory() -> None:
    """The example of NERSC's slides, on a node of less memory: all that fits stays in memory."""
    text = "/s:/a:perNodeCache=size=5G;/local:/b:perNodeCache=size=40G;/s:/d:perNodeCache=size=3G"
    a, b, d = steps(text)
    assert isinstance(a, Mount) and isinstance(d, Mount)
    assert isinstance(b, FileCache)
    assert (b.directory, b.size) == ("/local", 40 * G)
    (b, d) = steps("/s:/b:perNodeCache=size=5G;/local:/d:perNodeCache=size=5G")
    assert isinstance(b, Mount) and isinstance(d, FileCache)
    (one,) = steps("/s:/c:perNodeCache=size=100G", facts=CacheFacts(0, ""))
    assert isinstance(one, Mount)


@pytest.mark.parametrize(
    ("text", "site", "facts", "why", "hint"),
    [
        (
            "/s:/c:perNodeCache=size=100G,method=tmpfs",
            Site(),
            NODE,
            "/c: size=100G in memory is more than 8G, the limit of this node's memory",
            "ask for less than 8G, or keep it in a file: perNodeCache=size=100G,method=file",
        ),
        (
            "/s:/c:perNodeCache=size=100G",
            Site(origins=(("cache.method", "/etc/x:2"),)),
            NODE,
            "/c: size=100G in memory is more than 8G",
            "method=file",
        ),
        (
            "/closed:/c:perNodeCache=size=100G",
            Site(),
            NODE,
            "/c: size=100G does not fit into 8G, the limit of this node's memory; in a file: "
            "no directory for its file: /closed: no",
            "name a directory of yours before the ':', or ask for less: 8G of all caches fit",
        ),
        (
            "/local:/c:perNodeCache=size=40G",
            Site(),
            NODE.replace(fuse2fs=""),
            "in a file: this node has no fuse2fs",
            "fit into memory; or let the site install",
        ),
        (
            "/s:/c:perNodeCache=size=5G,method=tmpfs;/s:/d:perNodeCache=size=5G,method=tmpfs",
            Site(),
            NODE,
            "/d: size=5G (all caches: 10G) in memory is more than 8G",
            "",
        ),
        (
            "/s:/c:perNodeCache=size=2G",
            Site(cache_limit=G, origins=(("cache.limit", "/etc/x:3"),)),
            NODE,
            "/c: size=2G is more than this site allows: 1G (/etc/x:3)",
            "ask for at most size=1G",
        ),
        (
            "/local:/c:perNodeCache=size=1k,method=file",
            Site(),
            NODE,
            "too small for a file system in a file",
            "at least size=1M",
        ),
        (
            "/local:/c:perNodeCache=size=1G,method=file",
            Site(),
            NODE.replace(mke2fs="", fuse2fs=""),
            "this node has no mke2fs and no fuse2fs",
            "method=tmpfs",
        ),
        (
            "/local:/c:perNodeCache=size=100G,method=file",
            Site(),
            NODE,
            "no directory for its file: /local: 50G free",
            "name a directory of yours before the ':'",
        ),
        (
            "/s:/c:perNodeCache=size=1G,method=file",
            Site(cache_paths=("/full", "/closed"), origins=(("cache.paths", "/etc/x:4"),)),
            NODE,
            "no directory for its file (cache.paths, /etc/x:4): /full: 5 free; /closed: no",
            "ask for less, or keep it in memory",
        ),
    ],
)
def test_refused(text: str, site: Site, facts: CacheFacts, why: str, hint: str) -> None:
    with pytest.raises(UdiError) as caught:
        steps(text, site, facts)
    assert why in caught.value.message
    assert hint in caught.value.hint


def test_cgroup_files() -> None:
    text = "12:cpu,cpuacct:/x\n9:memory:/slurm/uid_1/job_2\n1:name=systemd:/s\n0::/a/b.scope\n"
    assert pernodecache.cgroup_files(text) == (
        "/sys/fs/cgroup/memory/slurm/uid_1/job_2/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/slurm/uid_1/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/slurm/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/a/b.scope/memory.max",
        "/sys/fs/cgroup/a/memory.max",
        "/sys/fs/cgroup/memory.max",
    )
    assert pernodecache.cgroup_files("0::/../../x") == (
        "/sys/fs/cgroup/x/memory.max",
        "/sys/fs/cgroup/memory.max",
    )
    assert pernodecache.cgroup_files("rubbish\n") == ()


def test_the_smallest_limit_counts() -> None:
    meminfo = "MemTotal:        8388608 kB\nMemFree: 1 kB\n"
    assert pernodecache.smallest({}, meminfo) == (8 * G, "this node's memory")
    assert pernodecache.smallest({"/a": "max\n", "/b": str(2**63 - 4096)}, meminfo)[0] == 8 * G
    assert pernodecache.smallest({"/a": f"{2 * G}\n", "/b": f"{G}\n"}, meminfo) == (
        G,
        "this job's cgroup (/b)",
    )
    assert pernodecache.smallest({}, "") == (0, "")


def test_facts_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(0o555)
    names = ["", "file", "closed", "gone"]
    words = "perNodeCache=size=1M,method=file"
    asked = [f"{tmp_path / name}:/c/{name}x:{words}" for name in names]
    facts = cachefacts.gather(volumes.parse(";".join(asked)), Site(), os.environ)
    assert facts.memory > 0
    assert [place.why for place in facts.places] == [
        "",
        "not a directory",
        "you may not write there",
        "No such file or directory",
    ]
    assert facts.places[0].free > 0
    assert cachefacts.gather((), Site(), {}).places == ()


@pytest.mark.needs("fuse2fs")
def test_mke2fs_makes_a_hundred_gibibytes_sparse(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w+b") as file:
        file.truncate(100 * G)
        asked = volumes.parse(f"{tmp_path}:/c:perNodeCache=size=1M,method=file")
        program = cachefacts.gather(asked, Site(), os.environ).mke2fs
        argv = pernodecache.filled(
            pernodecache.mke2fs(program, 100 * G), f"/dev/fd/{file.fileno()}"
        )
        path.unlink()
        subprocess.run(argv, pass_fds=[file.fileno()], check=True, timeout=120)
        assert os.fstat(file.fileno()).st_blocks * 512 < 64 * 1024**2


SCRIPT = """
import os, sys
sys.path.insert(0, {tree!r})
from rootless_udi.plan import pernodecache as cache, volumes
from rootless_udi.host import cachefacts
from rootless_udi.serve import cachefile, detached
from rootless_udi.plan.site import Site
from rootless_udi.base.errors import UdiError
from rootless_udi.idmap import userns

text, change = sys.argv[1:3]
asked = volumes.parse(text)
facts = cachefacts.gather(asked, Site(), os.environ)
uid, gid = os.getuid(), os.getgid()
(step,) = cache.plan(asked, Site(), facts)
if change:
    step = step.replace(**{{change: ("/bin/ls", "/nowhere")}})
userns.enter((0, uid), (0, gid))
try:
    made = cachefile.make(step)
except UdiError as error:
    sys.exit(error.message)
fd = os.open({target!r}, os.O_PATH)
detached.attach(made, fd)
os.close(fd)
userns.enter((uid, 0), (gid, 0))
os.execvp("/bin/sh", ["/bin/sh", "-c", *sys.argv[3:]])
"""


def in_file(tmp_path: Path, script: str, change: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a shell in namespaces with a cache of 64 MiB in a file, mounted at tmp_path/t."""
    target, tree = str(tmp_path / "t"), str(TREE)
    os.makedirs(target, exist_ok=True)
    argv = ["python3", "-c", SCRIPT.format(tree=tree, target=target)]
    text = f"{tmp_path}:/c:perNodeCache=size=64M,method=file"
    return subprocess.run(
        [*argv, text, change, f"cd {target} && {{ {script}\n}}"],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.needs("fuse2fs", "userns", "fuse")
def test_a_cache_in_a_file(tmp_path: Path) -> None:
    done = in_file(
        tmp_path,
        """
        df -P . | awk 'NR == 2 { print $2 - ($4 > 58 * 1024 ? 0 : 1000000) }'
        ls -A | wc -l; stat -c %u .
        mkdir d && echo hello > d/f && cat d/f && stat -c %u d/f
        dd if=/dev/zero of=big bs=1M count=100 2>&1 | grep -o 'No space.*'
        rm big && echo again > after && cat after
        """,
    )
    assert done.stderr == ""
    size, *rest = done.stdout.split("\n")
    assert 60 * 1024 <= int(size) <= 64 * 1024
    uid = str(os.getuid())
    expected = ["0", uid, "hello", uid, "No space left on device", "again", ""]
    assert rest == expected
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


@pytest.mark.needs("fuse2fs", "userns", "fuse")
def test_its_server_ends_with_the_last_process(user: User, tmp_path: Path) -> None:
    with counted(user) as left:
        done = in_file(tmp_path, 'grep -c "$PWD .* fuse" /proc/self/mountinfo; kill -KILL $$')
        assert (done.returncode, done.stdout) == (-9, "1\n"), done.stderr
        left.check_processes()


@pytest.mark.needs("fuse2fs", "userns", "fuse")
@pytest.mark.parametrize("program", ["mke2fs", "fuse2fs"])
def test_a_program_that_fails(tmp_path: Path, program: str) -> None:
    done = in_file(tmp_path, "echo never", program)
    assert done.stdout == ""
    # Newer coreutils name themselves without the folder.
    assert re.match("perNodeCache /c: /bin/ls failed: (/bin/)?ls: ", done.stderr), done.stderr


def test_a_directory_that_refuses() -> None:
    from rootless_udi.serve import cachefile

    step = FileCache("/c", "/proc", G, (), ())
    with pytest.raises(UdiError, match="perNodeCache /c: making its file in /proc failed: "):
        cachefile.make(step)


def test_where_no_file_can_be_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rootless_udi.serve import cachefile

    # What a file system without O_TMPFILE answers: EISDIR.
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    fd = cachefile._file(FileCache("/c", str(tmp_path), G, (), ()))
    assert (os.fstat(fd).st_size, os.fstat(fd).st_nlink) == (G, 0)
    os.close(fd)
    assert list(tmp_path.iterdir()) == []
