"""A capture of this machine, and of trees that stand for others."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import archspec.cpu
import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.forecast import capture, capturempi, site, symbolgroups
from rootless_udi.forecast.site import Capture
from rootless_udi.mpi_inject.libraries import abi
from rootless_udi.mpi_inject.libraries.symbols import Symbols
from rootless_udi.plan.site import MountRow, Site
from tests.conftest import User
from tests.kit import gpuhosts, mpihosts
from tests.kit.places import TREE
from tests.kit.registry import certificate, serve

FINDINGS = [
    ("ok", "user and mount namespaces", "works"),
    ("FAILURE", "FUSE in a user namespace", "x"),
]


def here(root: str = "/", on: str = "here", environ: dict[str, str] | None = None) -> Capture:
    env = {"PATH": "/usr/bin:/bin"} if environ is None else environ
    return capture.capture("lab", Site(), FINDINGS, env, "/", on, root)


def test_this_machine() -> None:
    found = here(on="")
    assert found.machine == os.uname().machine
    assert found.word("system", "kernel") == os.uname().release
    assert (found.table("system")["userns"], found.table("system")["fuse"]) == (True, False)
    assert "overlay" not in found.table("system")
    assert found.word("cpu", "name") == archspec.cpu.host().name
    assert found.number("memory") > 1 << 28
    assert found.number("config", "store") > 0
    assert found.rows("taken")[0]["on"] == "login"
    text = site.text(found)
    assert site.parse(text.encode(), "x").data == json.loads(json.dumps(found.data))


def test_nothing_of_the_caller_is_in_it(tmp_path: Path) -> None:
    home, node = str(tmp_path), os.uname().nodename
    rows = (MountRow(f"{home}/data", "/data"), MountRow("/scratch/me-too/ann/x", f"/n/{node}"))
    env = {"HOME": home, "USER": "ann", "PATH": f"{home}/bin:/usr/bin", "MPI_HOME": f"{home}/mpi"}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mpiexec").touch()
    found = capture.capture("lab", Site(mounts=rows), [], env, home)
    text = site.text(found)
    assert home not in text
    assert found.data["config"]["mounts"] == [
        ["$HOME/data", "/data", []],
        ["/scratch/me-too/$USER/x", "/n/$HOST", []],
    ]


def test_a_login_node_without_gpus_says_nothing_of_gpus(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert not here(root, "login").knows("gpus")
    assert here(root, "compute").data["gpus"] == []
    assert capture.capture("a", Site(), [], {"SLURM_JOB_ID": "1"}, "", "", root).data["gpus"] == []


def test_nvidia_and_amd(tmp_path: Path) -> None:
    host = gpuhosts.debian(tmp_path / "nvidia", cards=2)
    found = here(str(host.root), "compute")
    assert [one["vendor"] for one in found.rows("gpus")] == ["nvidia", "nvidia"]
    assert found.table("drivers")["nvidia"] == {"version": gpuhosts.VERSION, "cuda": "12.4"}
    node = tmp_path / "amd/sys/class/kfd/kfd/topology/nodes/1"
    (node / "mem_banks/0").mkdir(parents=True)
    (node / "properties").write_text("cpu_cores_count 0\ngfx_target_version 90010\n")
    (node / "name").write_text("aldebaran\n")
    (node / "mem_banks/0/properties").write_text("heap_type 1\nsize_in_bytes 68702699520\n")
    (tmp_path / "amd/sys/class/kfd/kfd/topology/nodes/0").mkdir()
    (tmp_path / "amd/sys/module/amdgpu").mkdir(parents=True)
    (tmp_path / "amd/sys/module/amdgpu/version").write_text("6.3.6\n")
    found = here(str(tmp_path / "amd"), "compute")
    assert found.rows("gpus") == [
        {"vendor": "amd", "arch": "gfx90a", "name": "aldebaran", "memory": 68702699520}
    ]
    assert found.table("drivers") == {"amd": {"version": "6.3.6"}}


def test_a_program_that_hangs_or_lies_is_passed_over(tmp_path: Path) -> None:
    for name, text in (("srun", "sleep 60"), ("mpiexec", "echo HYDRA; echo Version: 4.0.2")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = os.environ["PATH"]
    try:
        os.environ["PATH"] = f"{tmp_path}:{path}"
        found = here(str(tmp_path), "compute")
    finally:
        os.environ["PATH"] = path
    # A distribution's mpiexec.openmpi in /usr/bin may be there beside it.
    first, *others = found.rows("launchers")
    assert first == {"name": "hydra", "version": "4.0.2", "pmi": ["pmi1", "pmi2"]}
    assert [one["name"] for one in others] in ([], ["openmpi"])


def test_a_bad_name_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UdiError, match="is not a name for a site"):
        capture.capture("a/b", Site(), [], {})


def test_an_mpi_of_a_tree(tmp_path: Path) -> None:
    root = mpihosts.write(mpihosts.mpich_host(), tmp_path)
    found = capturempi.capture({"PATH": "/usr/bin"}, "x86_64", root)
    assert [one["family"] for one in found["found"]] == ["mpich"]
    mains = [one for one in found["libraries"] if abi.identify(one["soname"])[1] == "C"]
    assert {"MPI_Init", "MPI_Send"} <= set(symbolgroups.unpack(mains[0]["exports"]))
    assert capturempi.capture({}, "x86_64", str(tmp_path / "nothing")) == {"found": []}


@pytest.mark.needs("mpich", "openmpi")
def test_a_machine_with_two_mpis_is_a_hundred_kilobytes() -> None:
    """With their Fortran and UCX, and all symbols of both."""
    found = here(on="compute")
    assert {one["family"] for one in found.data["mpi"]["found"]} >= {"mpich", "openmpi"}
    text = site.text(found)
    assert len(text.encode()) < 100_000
    for row in found.data["mpi"]["libraries"]:
        if "exports" in row:
            path = Path(row.get("real", row["path"]))
            there = set(Symbols(path.read_bytes()).exported(abi.SYMBOLS))
            kept = set(symbolgroups.unpack(row["exports"]))
            assert kept <= there
            assert all(not name.startswith(abi.PUBLIC) for name in there - kept), path


def test_commands(user: User) -> None:
    """`udi site` from capture to show; what is published is what was captured."""
    done = user.run("udi", "site", "capture", "--name=lab", "--to=lab.json", check=True)
    assert "look at it before" in done.stderr
    refused = user.run("udi", "site", "capture", "--to=lab.json")
    assert (refused.returncode, "lab.json is there already" in refused.stderr) == (125, True)
    again = user.run("udi", "site", "capture", "--on=compute", "--merge=lab.json", check=True)
    merged = site.parse(again.stdout.encode(), "x")
    assert merged.name == "lab"
    assert [row["on"] for row in merged.rows("taken")] == ["compute", "login"]
    assert str(user.home) not in again.stdout
    done = user.run("udi", "site", "add", "mine", "lab.json", "./lab.json", check=True)
    assert done.stdout == f"{user.home}/.config/rootless_udi/sites/mine.json\n"
    assert "is there already" in user.run("udi", "site", "add", "mine", "lab.json").stderr
    assert user.run("udi", "site", "list", check=True).stdout.startswith("mine")
    shown = user.run("udi", "site", "show", "mine", check=True).stdout
    assert shown.startswith("site      mine, taken on login ")
    raw = user.run("udi", "site", "show", "--json", "mine", check=True).stdout
    assert json.loads(raw)["name"] == "mine"
    (user.home / ".config/rootless_udi/sites/bad.json").write_text('{"format": ')
    listed = json.loads(user.run("udi", "site", "list", "--json", check=True).stdout)
    assert "was it cut off?" in next(row["what"] for row in listed if row["name"] == "bad")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("show", "nowhere"), "there is no site 'nowhere'"),
        (("show", "./nothing.json"), "reading site capture ./nothing.json failed: No such file"),
        (("show", "/etc/passwd"), "reading site capture /etc/passwd failed: Expecting value"),
        (("add", "x", "http://localhost/x.json"), "failed: is no https URL"),
        (("add", "x", "https://localhost:1/x.json"), "GET https://localhost:1/x.json failed: "),
        (("add", "../x", "lab.json"), "'../x' is not a name for a site"),
    ],
)
def test_errors_of_the_commands(user: User, words: tuple[str, ...], error: str) -> None:
    done = user.run("udi", "site", *words)
    assert done.returncode == 125
    assert error in done.stderr and "Traceback" not in done.stderr


def test_without_archspec(user: User) -> None:
    """As a checkout that is run by the system's Python."""
    code = (
        "import sys; sys.modules['archspec'] = None; from rootless_udi.commands.udi import main;"
        " main(sys.argv[1:])"
    )
    for words in (("site", "capture"), ("check", "/")):
        done = user.run(sys.executable, "-c", code, *words, env={"PYTHONPATH": str(TREE)})
        assert done.returncode == 125 and "need the package archspec" in done.stderr, done.stderr


def test_without_a_home(user: User) -> None:
    done = user.run("udi", "site", "add", "x", "lab.json", env={"HOME": ""})
    assert (
        "no place for captures of sites: HOME is not set" in done.stderr
        or "lab.json" in done.stderr
    )


@pytest.mark.needs("registry")
def test_a_published_capture_comes_by_https(user: User, tmp_path: Path) -> None:
    text = site.text(here()).encode()

    class Web(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in ("/lab.json", "/big.json")
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(text if self.path == "/lab.json" else b" " * (2 << 20))

        def log_message(self, *_words: object) -> None:
            pass

    cert, key = certificate(tmp_path, "web")
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    cert.chmod(0o644)
    server = serve(Web, both)
    try:
        url = f"https://127.0.0.1:{server.server_port}"
        env = {"SSL_CERT_FILE": str(cert)}
        done = user.run("udi", "site", "add", "lab", f"{url}/lab.json", env=env)
        assert done.returncode == 0, done.stderr
        assert user.run("udi", "site", "show", "lab").stdout.startswith("site      lab")
        for name, why in (("none", "status 404"), ("big", "more than")):
            done = user.run("udi", "site", "add", "y", f"{url}/{name}.json", env=env)
            assert done.returncode == 125 and why in done.stderr, done.stderr
        done = user.run("udi", "site", "add", "y", f"{url}/lab.json")
        assert done.returncode == 125 and "certificate" in done.stderr
    finally:
        server.shutdown()
        server.server_close()
