"""Forecasts: each kind of finding by what leads to it, and the command itself."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.forecast import check, imagefacts
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import FAILS, RUNS, UNKNOWN, UNLOOKED, WITH, CheckFinding
from rootless_udi.forecast.site import FORMAT, Capture
from rootless_udi.plan.image import Image
from rootless_udi.plan.options import Request, parse
from tests.conftest import User

SITE: dict[str, Any] = {
    "format": FORMAT,
    "version": 1,
    "name": "lab",
    "system": {
        "machine": "x86_64",
        "kernel": "5.14.0-427.el9.x86_64",
        "userns": True,
        "fuse": True,
        "overlay": True,
    },
    "cpu": {"name": "zen2", "generic": "x86_64_v3"},
    "memory": 64 << 30,
    "gpus": [],
    "config": {
        "mounts": [["/tmp", "/tmp"], ["/lustre", "/lustre"], ["/sw", "/opt/sw"]],
        "modules": ["gpu", "mpi", "pe"],
        "cache_limit": 0,
        "store": 1 << 40,
    },
}
PROGRAMS: dict[str, Any] = {
    "machines": {"x86_64": [9, ["/bin/sh"]]},
    "kernels": {"3.2.0": ["/lib64/libc.so.6"]},
    "levels": {},
}


def site(**sections: Any) -> Capture:
    """Return SITE with sections replaced; keys of objects are added to; None takes one away."""
    data = dict(SITE)
    for name, value in sections.items():
        data[name] = {**data.get(name, {}), **value} if isinstance(value, dict) else value
    return Capture("lab", {key: value for key, value in data.items() if value is not None})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "opt/sw").mkdir(parents=True)
    (root / "bin/true").write_bytes(Path("/bin/true").read_bytes())
    (root / "bin/true").chmod(0o755)
    (root / "bin/data").write_text("x")
    (root / "bin/script").write_text("#!/bin/nothing -x\n")
    (root / "bin/text").write_text("echo\n")
    for name in ("script", "text"):
        (root / "bin" / name).chmod(0o755)
    return root


def found(
    root: Path,
    where: Capture,
    facts: dict[str, Any] | None = None,
    words: tuple[str, ...] = (),
    programs: dict[str, Any] | None = None,
    size: int = 0,
    name: str = "",
) -> list[CheckFinding]:
    """Return the findings of the check `name`, or all, for udi-run's words behind the image."""
    request = (
        parse([*words[: words.index("--")], "i", *words[words.index("--") :]], {})
        if "--" in words
        else parse([*words, "i"], {})
    )
    every = {**(facts or {}), "forecast": {"programs": {**PROGRAMS, **(programs or {})}}}
    asked = Asked("i", str(root), request, {}, size)
    return [one for one in check.check(where, every, asked).findings if name in ("", one.check)]


def only(rows: list[CheckFinding]) -> CheckFinding:
    (row,) = rows
    return row


@pytest.mark.parametrize(
    ("sections", "facts", "programs", "name", "verdict", "words"),
    [
        ({}, {}, {}, "architecture", RUNS, "for x86_64, as the site is"),
        ({"system": {"machine": "aarch64"}}, {}, {}, "architecture", FAILS, "are aarch64"),
        ({"system": {"machine": ""}}, {}, {}, "architecture", UNKNOWN, "does not say"),
        ({}, {"architecture": "arm64"}, {"machines": {}}, "architecture", FAILS, "for arm64"),
        ({}, {}, {"machines": {}}, "architecture", RUNS, "no program is for another"),
        ({}, {}, {"machines": {"i386": [1, ["/x"]]}}, "architecture", RUNS, "runs too"),
        ({}, {}, {"kernels": {"6.1.0": ["/lib/libc.so.6"]}}, "kernel", FAILS, "needs Linux 6.1.0"),
        ({}, {}, {"kernels": {"6.1.0": ["/bin/x"]}}, "kernel", UNKNOWN, "needs Linux 6.1.0"),
        ({}, {}, {"kernels": {"5.14.0": ["/bin/x"]}}, "kernel", RUNS, "Linux 5.14.0 or newer"),
        ({"system": {"kernel": "3.10.0-1160.el7"}}, {}, {}, "kernel", FAILS, "mounts no FUSE"),
        ({"system": {"kernel": ""}}, {}, {}, "kernel", UNKNOWN, "does not say"),
        ({}, {}, {"levels": {"3": ["/bin/x"]}}, "level", RUNS, "no file asks for more"),
        ({}, {}, {"levels": {"4": ["/bin/x"]}}, "level", UNKNOWN, "ISA level"),
        ({}, {}, {"levels": {"4": ["/lib64/libc.so.6"]}}, "level", FAILS, "has v3"),
        ({"cpu": {"generic": "x"}}, {}, {"levels": {"2": ["/x"]}}, "level", UNKNOWN, "needs x86"),
        ({"system": {"userns": False}}, {}, {}, "namespaces", FAILS, "no user namespaces"),
        ({"system": {"userns": None}}, {}, {}, "namespaces", UNKNOWN, "is not known"),
        ({"system": {"fuse": False}}, {}, {}, "namespaces", RUNS, "there is no FUSE"),
        ({"config": None}, {}, {}, "mounts", UNLOOKED, "the capture does not say"),
        ({}, {"workdir": "/lustre/x"}, {}, "mounts", UNKNOWN, "WORKDIR /lustre/x is hidden"),
        ({}, {"env": ["P=/a:/lustre/b"]}, {}, "mounts", UNKNOWN, "ENV P /lustre/b is hidden"),
        ({}, {}, {}, "mounts", RUNS, "no mount of the site hides"),
        ({}, {}, {}, "command", UNLOOKED, "no command was given"),
        ({"config": {"store": 0}}, {}, {}, "store", UNLOOKED, "it is a directory"),
    ],
)
def test_findings(
    root: Path,
    sections: dict[str, Any],
    facts: dict[str, Any],
    programs: dict[str, Any],
    name: str,
    verdict: str,
    words: str,
) -> None:
    row = only(found(root, site(**sections), facts, (), programs, name=name))
    assert (row.verdict, words in row.what) == (verdict, True), row
    assert row.remedy or verdict != FAILS


def test_variants_of_a_platform(root: Path) -> None:
    facts = {"architecture": "amd64", "variant": "v4"}
    rows = found(root, site(), facts, name="architecture")
    assert [row.verdict for row in rows] == [RUNS, FAILS]
    rows = found(root, site(), {**facts, "variant": "v3"}, name="architecture")
    assert [row.verdict for row in rows] == [RUNS]
    rows = found(root, site(cpu={"generic": ""}), facts, name="architecture")
    assert [row.verdict for row in rows] == [RUNS, UNKNOWN]


@pytest.mark.parametrize(
    ("words", "name", "verdict", "text"),
    [
        (("--", "true"), "command", FAILS, "dynamic linker"),
        (("--", "nothing"), "command", FAILS, "no such program"),
        (("--", "/bin/data"), "command", FAILS, "not executable"),
        (("--", "/bin"), "command", FAILS, "is a directory"),
        (("--", "script"), "command", FAILS, "interpreter /bin/nothing of /bin/script"),
        (("--", "text"), "command", FAILS, "neither an ELF program nor a script"),
        (("--", "./x"), "command", UNKNOWN, "whether a mount brings it"),
        (("--volume=/lustre/a:/a", "--", "/a/x"), "command", UNKNOWN, "whether a mount brings it"),
        (("--entrypoint",), "command", FAILS, "no ENTRYPOINT"),
        (("--volume=/lustre/a:/a",), "volumes", RUNS, "/lustre/a lies in a file system"),
        (("--volume=/else:/a",), "volumes", UNKNOWN, "whether /else is there"),
        (("--volume=/lustre/a:/etc",), "volumes", FAILS, "/etc"),
        (("--volume=/tmp:/c:perNodeCache=size=9T",), "volumes", FAILS, "more than a node has"),
        (("--volume=/tmp:/c:perNodeCache=size=9G",), "volumes", RUNS, "fits into a node"),
        (("--module=pe",), "modules", RUNS, "are there"),
        (("--module=none",), "modules", RUNS, "are there"),
        (("--module=x",), "modules", FAILS, "no module x"),
        (("--gpu",), "gpus", FAILS, "no GPU for --gpu"),
        (("--gpu=nvidia",), "gpus", FAILS, "no nvidia for --gpu"),
    ],
)
def test_findings_about_what_is_asked(
    root: Path, words: tuple[str, ...], name: str, verdict: str, text: str
) -> None:
    row = only(found(root, site(), None, words, name=name))
    assert (row.verdict, text in row.what) == (verdict, True), row
    assert row.remedy or verdict != FAILS


def test_more_about_what_is_asked(root: Path) -> None:
    (root / "lib64").mkdir()
    (root / "lib64/ld-linux-x86-64.so.2").write_text("")
    assert only(found(root, site(), None, ("--", "true"), name="command")).verdict == RUNS
    arm = site(system={"machine": "aarch64"})
    assert only(found(root, arm, None, ("--", "true"), name="command")).verdict == FAILS
    mount = site(config={"mounts": [["/x", "/bin"]]})
    row = only(found(root, mount, None, ("--", "true"), name="mounts"))
    assert row.verdict == FAILS and "command /bin/true is hidden" in row.what
    row = only(found(root, mount, None, (), name="mounts"))
    assert row.verdict == UNKNOWN and "(data, script, text, ...)" in row.what
    limited = site(config={"cache_limit": 1 << 30})
    words = ("--volume=/tmp:/c:perNodeCache=size=9G",)
    assert (
        "more than the site allows" in only(found(root, limited, None, words, name="volumes")).what
    )
    words = ("--volume=/lustre:/c:perNodeCache=size=9G,method=file",)
    assert only(found(root, site(), None, words, name="volumes")).verdict == UNLOOKED
    assert (
        only(
            found(
                root,
                site(memory=0),
                None,
                ("--volume=/tmp:/c:perNodeCache=size=1G",),
                name="volumes",
            )
        ).verdict
        == UNKNOWN
    )
    small = site(config={"store": 10})
    assert only(found(root, small, size=11, name="store")).verdict == FAILS
    assert only(found(root, small, size=9, name="store")).verdict == RUNS
    below = site(system={"overlay": False})
    rows = found(root, below, None, ("--writable",), name="namespaces")
    assert [row.verdict for row in rows] == [RUNS, UNKNOWN]
    gpu = site(gpus=[{"vendor": "nvidia"}])
    facts = {"env": ["NVIDIA_VISIBLE_DEVICES=all"]}
    row = only(found(root, gpu, facts, name="gpus"))
    assert (row.verdict, row.options) == (WITH, ("--gpu",))
    assert found(root, gpu, facts, ("--gpu=none",), name="gpus") == []
    assert only(found(root, gpu, facts, ("--gpu",), name="gpus")).verdict == RUNS
    assert only(found(root, site(gpus=None), facts, ("--gpu",), name="gpus")).verdict == UNKNOWN
    entry = {"entrypoint": ["/bin/true"], "cmd": ["x"]}
    assert only(found(root, site(), entry, ("--entrypoint",), name="command")).verdict == RUNS


@pytest.mark.needs("userns", "busybox")
def test_a_hidden_folder_that_the_command_does_not_need(root: Path) -> None:
    (root / "opt/sw/file").write_text("x")
    (root / "bin/busybox").write_bytes(Path(shutil.which("busybox") or "").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    memo: dict[str, Any] = {}
    for word, verdict in (("true", RUNS), ("cat", UNKNOWN)):
        words = ["--no-cwd", str(root), "--", "/bin/busybox", word, "/opt/sw/file"]
        asked = Asked(str(root), str(root), parse(words, {}), dict(memo))
        rows = check.check(site(), {"forecast": {"programs": PROGRAMS}}, asked).findings
        (row,) = (one for one in rows if one.check == "mounts")
        assert row.verdict == verdict, row
        assert ("ran here without them" in row.what) == (verdict == RUNS)


def test_an_empty_or_odd_capture_never_promises(root: Path) -> None:
    for data in (
        {},
        {
            "system": {"userns": "yes", "kernel": 5, "machine": []},
            "config": {"mounts": [1, ["x"], "y"], "modules": 5, "store": "x"},
            "cpu": {"generic": 1},
        },
    ):
        request = Request(image="i", volume=("/a:/b",), gpu="", module="pe")
        asked = Asked("i", str(root), request, {}, 5)
        answer = check.check(Capture("x", {"name": "x", **data}), {}, asked)
        assert answer.verdict in (UNKNOWN, FAILS)


def test_facts_of_any_shape_are_borne(root: Path) -> None:
    for programs in (None, 5, {}, {"machines": 5, "kernels": [], "levels": "x"}):
        asked = Asked("i", str(root), Request(image="i"), {}, 5)
        check.check(site(), {"forecast": {"programs": programs}}, asked)


@pytest.fixture
def lab(user: User) -> str:
    (user.home / "lab.json").write_text(json.dumps(SITE))
    return "./lab.json"


def test_the_command(user: User, lab: str, root: Path) -> None:
    done = user.run("udi", "check", root, "--site", lab, "--", "nothing")
    assert (done.returncode, "lab: will not run" in done.stdout) == (1, True), done.stderr
    assert "remedy: name one by its path" in done.stdout
    done = user.run("udi", "check", "--site", lab, "--volume", "/x:/y", root, "--all")
    assert (done.returncode, "lab: can't tell" in done.stdout) == (3, True)
    assert "yes  architecture: " in done.stdout
    done = user.run("udi", "check", root, "--site", lab, "--site", lab)
    assert (done.returncode, done.stdout.count("lab: will run")) == (0, 2)
    assert "no command was given" in done.stdout
    # Behind the command's first word all words are its own, as udi-run has it.
    done = user.run("udi", "check", root, "--site", lab, "nothing", "--site", "/nowhere")
    assert (done.returncode, done.stdout.count("lab: will not run")) == (1, 1), done.stderr
    done = user.run("udi", "check", root, "--site", lab, "--json", "--", "nothing")
    (answer,) = json.loads(done.stdout)["sites"]
    assert answer["verdict"] == "fails"
    assert {row["check"] for row in answer["findings"]} >= {"architecture", "kernel", "command"}


def test_without_a_site_it_is_this_machine(user: User, root: Path) -> None:
    done = user.run("udi", "check", root, "--json")
    assert json.loads(done.stdout)["sites"][0]["site"] == "here", done.stderr


@pytest.mark.needs("mksquashfs")
def test_the_second_time_nothing_of_the_image_is_read(user: User, lab: str, root: Path) -> None:
    target = user.home / "image.sqfs"
    argv: list[str | Path] = ["mksquashfs", root, target, "-noappend", "-quiet", "-no-progress"]
    subprocess.run(argv, check=True, capture_output=True)
    first = user.run("udi", "check", target, "--site", lab, "--json")
    place = user.home / ".cache/rootless_udi/forecast"
    (kept,) = place.iterdir()
    document = json.loads(kept.read_text())
    document["facts"]["programs"]["machines"] = {"s390x": [1, ["/kept"]]}
    kept.write_text(json.dumps(document))
    second = user.run("udi", "check", target, "--site", lab, "--json")
    assert (first.returncode, second.returncode) == (0, 1)
    assert "/kept" in second.stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "udi check: no image is given"),
        (("nowhere:1", "--site", "lab.json"), "image nowhere:1 is in no image store"),
        (("/", "--site", "nowhere"), "there is no site 'nowhere'"),
        (("/", "--no-such-option"), "no-such-option"),
        (("/etc/passwd", "--site", "lab.json"), "is no squashfs file"),
    ],
)
def test_errors(user: User, lab: str, words: tuple[str, ...], error: str) -> None:
    done = user.run("udi", "check", *words)
    assert (done.returncode, error in done.stderr) == (125, True), done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_completion_name_both_kinds_of_options(user: User) -> None:
    assert "--site" in user.run("udi", "check", "--help").stdout
    bash = user.run("udi", "completion", "bash").stdout
    assert "--site" in bash and "--mpi-compat" in bash


def test_images_with_text_that_a_terminal_obeys(user: User, lab: str, root: Path) -> None:
    (root / "opt/sw/\x1b]0;x\x07").write_text("")
    for words in ((), ("--json",), ("--all",)):
        done = user.run("udi", "check", root, "--site", lab, *words)
        assert "\x1b" not in done.stdout and "\\x1b" in done.stdout.replace("\\u001b", "\\x1b")


def test_unread_files_are_named(root: Path) -> None:
    rows = list(check.check_facts({"forecast": {"unread": [["/a", "b"], ["/c", "d"]]}}))
    assert rows[0].verdict == UNLOOKED and rows[0].what == "/a and 1 more can't be read: b"
    rows = list(check.check_facts({"forecast": {"unread": [["/", "cut off"]]}}))
    assert rows[0].verdict == UNKNOWN


def test_gatherers_have_names_of_their_own() -> None:
    names = [one.NAME for one in imagefacts.GATHERERS]
    assert len(set(names)) == len(names) and "elf" not in names
    assert Image("x", "", "", "/", {}).facts == {}


@pytest.mark.needs("mksquashfs")
def test_a_damaged_image_is_never_promised(user: User, lab: str, root: Path) -> None:
    target = user.home / "image.sqfs"
    for number in range(3000):
        (root / f"opt/file{number}").write_text(str(number))
    argv: list[str | Path] = ["mksquashfs", root, target, "-noappend", "-quiet", "-no-progress"]
    subprocess.run(argv, check=True, capture_output=True)
    data = bytearray(target.read_bytes())
    # The superblock says where the tables of inodes and folders begin.
    inodes = int.from_bytes(data[64:72], "little")
    data[inodes + 2 : inodes + 400] = bytes(398)
    target.write_bytes(data)
    done = user.run("udi", "check", target, "--site", lab)
    assert done.returncode in (1, 3), done.stdout + done.stderr
    assert "can't be read" in done.stdout and "Traceback" not in done.stderr


def test_many_at_once_and_without_anything(user: User, lab: str, root: Path) -> None:
    """16 that gather the same facts at once; an empty environment."""
    target = user.home / "image.sqfs"
    argv: list[str | Path] = ["mksquashfs", root, target, "-noappend", "-quiet", "-no-progress"]
    subprocess.run(argv, check=True, capture_output=True)
    words = ("udi", "check", str(target), "--site", lab)
    many = [user.popen(*words, stdout=subprocess.PIPE) for _ in range(16)]
    said = {one.communicate()[0] for one in many}
    assert [one.returncode for one in many] == [0] * 16 and len(said) == 1
    assert len(list((user.home / ".cache/rootless_udi/forecast").iterdir())) == 1
    bare = {"HOME": "", "USER": "", "UDI_STORE": "", "XDG_RUNTIME_DIR": "", "LANG": ""}
    done = user.run(*words, env=bare)
    assert done.returncode == 0, done.stderr
