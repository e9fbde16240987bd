"""Modules: read from TOML, selected, planned, their patterns and hooks."""

import fnmatch
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.config import files, merge
from rootless_udi.host import globs
from rootless_udi.idmap import accounts
from rootless_udi.plan import modules
from rootless_udi.plan.modules import Bind, Device, Module
from rootless_udi.plan.steps import Env, Hook, Mount
from tests.kit.places import TREE


def read(text: str, name: str = "m") -> Module:
    """Read one module's TOML as a launch does: through JSON's types."""
    source = files.ConfigFile(f"/site/modules.d/{name}.toml", "site-module", 0, 0, 0)
    site = merge.merged([source], [text])
    return modules.available(site.modules)[name]


def test_a_whole_file() -> None:
    module = read(
        """
description = "MPICH of the machine"
conflicts = ["openmpi"]
requires = ["fabric"]
devices = ["/dev/cxi*", { path = "/dev/xpmem", required = false }]

[[bind]]
source = "/opt/site/mpich"
destination = "/opt/udiImage/modules/mpich"

[[bind]]
source = "/usr/lib64/libcxi.so*"
destination = "/usr/lib64/"
options = ["rw", "rec"]
required = false

[env]
set = { A = "1" }
append = { B = "2" }
prepend = { LD_LIBRARY_PATH = "/opt/udiImage/modules/mpich/lib64" }
unset = ["C"]

[hook]
command = "test -d /opt/udiImage/modules/mpich"
seconds = 5
"""
    )
    assert module == Module(
        name="m",
        binds=(
            Bind("/opt/site/mpich", "/opt/udiImage/modules/mpich"),
            Bind("/usr/lib64/libcxi.so*", "/usr/lib64/", ("rw", "rec"), False),
        ),
        devices=(Device("/dev/cxi*"), Device("/dev/xpmem", False)),
        environment=(
            Env("set", "A", "1"),
            Env("append", "B", "2"),
            Env("prepend", "LD_LIBRARY_PATH", "/opt/udiImage/modules/mpich/lib64"),
            Env("unset", "C"),
        ),
        conflicts=("openmpi",),
        requires=("fabric",),
        hook=Hook(("/bin/sh", "-c", "test -d /opt/udiImage/modules/mpich"), 5.0),
        description="MPICH of the machine",
        origin="/site/modules.d/m.toml",
    )


def test_an_empty_file_is_a_module() -> None:
    assert read("") == Module("m", origin="/site/modules.d/m.toml")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("binds = []", ":1: binds: unknown key"),
        ("x", ":1: not TOML"),
        ("enabled = 0", ":1: enabled: expected true or false"),
        ("requires = 'a'", "requires: expected a list"),
        ("requires = ['a,b']", "'a,b' is no name of a module"),
        ("conflicts = ['none']", "'none' is no name of a module"),
        ("accounts = ['slurm']", "'slurm' is no account"),
        ("accounts = ['slurm:1:x']", "'slurm:1:x' is no account"),
        ("[[bind]]\ndestination = '/x'", ":1: bind[1]: no source"),
        ("[[bind]]\nsource = '$HOME'", ":2: bind[1].source: path $HOME is not absolute"),
        ("[[bind]]\nsource = '/a/*'\ndestination = '/x'", ":3: bind[1].destination: a pattern's"),
        ("[[bind]]\nsource = '/a'\ndestination = '/etc/passwd'", "/etc/passwd is not allowed"),
        ("[[bind]]\nsource = '/etc'", "destination /etc is not allowed"),
        ("[[bind]]\nsource = '/a'\nmode = 1", "bind[1].mode: unknown key"),
        ("bind = 3", "bind: expected a list, found an integer"),
        ("devices = ['/a']", "devices[1]: /a is not below /dev"),
        ("devices = [3]", "devices[1]: expected a table, found an integer"),
        ("devices = [{ path = '/dev/a', mode = 1 }]", "devices[1].mode: unknown key"),
        ("[env]\nfoo = 1", ":2: env.foo: unknown key"),
        ("[env.set]\nA = 1", "set.A: expected a string"),
        ("hook = ''", "hook.command: no command"),
        ("hook = []", "hook.command: no command"),
        ("[hook]\ncommand = 'a'\nseconds = 0", ":3: hook.seconds: expected seconds, found 0"),
        ("[hook]\ncommand = 'a'\ntimeout = 3", "hook.timeout: unknown key"),
    ],
)
def test_a_wrong_file_is_met_by_who_selects_it(text: str, why: str) -> None:
    module = read(text)
    assert why in module.problem
    with pytest.raises(UdiError) as caught:
        modules.select(["m"], {"m": module})
    assert caught.value.message.startswith("module m: /site/modules.d/m.toml:")
    assert modules.select([], {"m": module}) == ()


def test_names_of_files() -> None:
    assert "no name of a module" in read("", "-x").problem
    source = files.ConfigFile("/site/modules.d/gpu.toml", "site-module", 0, 0, 0)
    _, problems = merge.merge([source], [""])
    assert "module gpu is built in" in str(problems[0])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        ("b, a,,b", ("b", "a")),
        ("none", ()),
    ],
)
def test_names(text: str, names: tuple[str, ...]) -> None:
    assert modules.names(text) == names


@pytest.mark.parametrize(
    ("text", "why"), [("", "no module is named"), (",", "no module"), ("none,a", "none and others")]
)
def test_names_refused(text: str, why: str) -> None:
    with pytest.raises(UdiError, match=why):
        modules.names(text)


def known(*them: Module) -> dict[str, Module]:
    return modules.available({}) | {m.name: m.replace(origin=f"/{m.name}.toml") for m in them}


def test_select_in_order_and_after_what_is_required() -> None:
    them = known(
        Module("a", requires=("b", "mpi")), Module("b", requires=("c",)), Module("c"), Module("d")
    )
    assert [m.name for m in modules.select(["d", "a", "c"], them)] == ["d", "c", "b", "mpi", "a"]
    assert modules.select(["mpi"], them)[0].built_in


@pytest.mark.parametrize(
    ("wanted", "why", "hint"),
    [
        (["x"], "module x: there is no such module", "modules are: a, b, c, d, e, gpu, mpi, s"),
        (["a"], "module x (required by a): there is no such module", ""),
        (["b"], "module b requires c requires b: a circle", "correct `requires` in /b.toml"),
        (["s"], "module s requires s: a circle", ""),
        (["d", "mpi"], "module d conflicts with module mpi (/d.toml)", "leave one of them out"),
        (["mpi", "d"], "module d conflicts with module mpi", ""),
        (["e"], "module e: disabled in /e.toml", ""),
    ],
)
def test_select_refused(wanted: list[str], why: str, hint: str) -> None:
    them = known(
        Module("a", requires=("x",)),
        Module("b", requires=("c",)),
        Module("c", requires=("b",)),
        Module("d", conflicts=("mpi", "d")),
        Module("e", enabled=False),
        Module("s", requires=("s",)),
    )
    with pytest.raises(UdiError) as caught:
        modules.select(wanted, them)
    assert why in caught.value.message
    assert hint in caught.value.hint


def test_plan() -> None:
    one = Module(
        "one",
        binds=(
            Bind("/lib/libx.so*", "/usr/lib64/"),
            Bind("/opt/one", "/opt/udiImage/modules/one", ("rw",)),
            Bind("/not/here", required=False),
        ),
        devices=(Device("/dev/cxi*"),),
        environment=(Env("set", "A", "1"),),
        origin="/one.toml",
    )
    two = Module(
        "two",
        binds=(Bind("/opt/other", "/usr/lib64/libx.so.1"),),
        environment=(Env("unset", "A"),),
        hook=Hook(("/h",)),
        origin="/two.toml",
    )
    assert modules.patterns((one, two)) == (
        "/lib/libx.so*",
        "/opt/one",
        "/not/here",
        "/dev/cxi*",
        "/opt/other",
    )
    matches = {
        "/lib/libx.so*": ("/lib/libx.so", "/lib/libx.so.1"),
        "/opt/one": ("/opt/one",),
        "/opt/other": ("/opt/other",),
        "/dev/cxi*": ("/dev/cxi0", "/dev/cxi1"),
    }
    injection, ran = modules.plan((one, two), matches)
    first, second = "module one (/one.toml)", "module two (/two.toml)"
    assert injection.steps == (
        Mount("/dev/cxi0", "/dev/cxi0", "", ("rw",), True, first),
        Mount("/dev/cxi1", "/dev/cxi1", "", ("rw",), True, first),
        Mount("/usr/lib64/libx.so", "/lib/libx.so", "", ("ro",), True, first),
        Mount("/usr/lib64/libx.so.1", "/opt/other", "", ("ro",), True, second),
        Mount("/opt/udiImage/modules/one", "/opt/one", "", ("rw",), True, first),
    )
    assert injection.environment == (Env("set", "A", "1", first), Env("unset", "A", "", second))
    assert ran == (Hook(("/h",), 30.0, second),)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Module("m", binds=(Bind("/a/*"),), origin="/m.toml"), "module m: nothing matches /a/*"),
        (Module("m", binds=(Bind("/a"),), origin="/m.toml"), "module m: there is no /a on this"),
        (Module("m", devices=(Device("/dev/x"),)), "module m: there is no /dev/x on this host"),
    ],
)
def test_plan_refused(module: Module, why: str) -> None:
    with pytest.raises(UdiError) as caught:
        modules.plan((module,), {})
    assert why in caught.value.message


def test_patterns_on_disk(tmp_path: Path) -> None:
    for name in ("lib/libx.so", "lib/libx.so.1", "lib64/libx.so", "lib/.libx.so", "lib/other"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "closed").mkdir(0o000)
    found = globs.matches(
        [f"{tmp_path}/lib*/libx.so*", f"{tmp_path}/lib", f"{tmp_path}/no", f"{tmp_path}/closed/*"]
    )
    assert [[os.path.relpath(p, tmp_path) for p in paths] for paths in found.values()] == [
        ["lib/libx.so", "lib/libx.so.1", "lib64/libx.so"],
        ["lib"],
        [],
        [],
    ]


@settings(max_examples=300)
@given(
    st.text(alphabet="ab.-]", min_size=1, max_size=6),
    st.text(alphabet="ab*?[]!-.", max_size=8),
)
def test_patterns_mean_what_fnmatch_says(name: str, pattern: str) -> None:
    expected = fnmatch.fnmatchcase(name, pattern)
    if name.startswith(".") and not pattern.startswith("."):
        expected = False
    if "--" not in pattern and "-]" not in pattern and "[-" not in pattern and "!-" not in pattern:
        assert globs.matching(name, pattern) is expected


def sh(script: str, seconds: float = 120) -> Hook:
    return Hook(("/bin/sh", "-c", script), seconds, "module m (/m.toml)")


RUN = """
import ast, os, sys
sys.path.insert(0, sys.argv[1])
from rootless_udi.base.errors import UdiError
from rootless_udi.launch import hooks
from rootless_udi.plan.steps import Hook
def refuse(pid):
    raise OSError
if sys.argv[2] == "without pidfd":
    os.pidfd_open = refuse
try:
    hooks.run([Hook(*each) for each in ast.literal_eval(sys.argv[3])], {"PATH": "/usr/bin:/bin"})
except UdiError as error:
    sys.exit(error.message)
"""


def run(*hooks: Hook, how: str = "") -> "subprocess.CompletedProcess[str]":
    """Run hooks in an interpreter of its own, as a launch does: this one has threads."""
    rows = repr([(hook.argv, hook.seconds, hook.reason) for hook in hooks])
    argv: list[str | Path] = [sys.executable, "-W", "error", "-c", RUN, TREE, how, rows]
    return subprocess.run(argv, input="no hook's", capture_output=True, text=True)


def test_hooks_run_in_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = run(sh(f"echo 1 >> {log}"), sh(f"cat; echo 2 >> {log}; echo out"))
    assert log.read_text() == "1\n2\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "out\n")


def test_a_hook_has_the_callers_signals() -> None:
    """SIGPIPE (bit 12) and SIGXFSZ (bit 24), which Python ignores."""
    ignored = "0x$(sed -n 's/SigIgn:[[:space:]]*//p' /proc/self/status)"
    assert run(sh(f"test $(({ignored} & 0x1001000)) = 0")).returncode == 0


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        (sh("exit 3"), "exit 3: failed with status 3"),
        (sh("kill -TERM $$"), "killed by signal 15"),
        (Hook(("/nowhere/h",), 9.0, "module m (/m.toml)"), "/nowhere/h: not found"),
    ],
)
def test_hooks_that_fail(hook: Hook, why: str) -> None:
    last = run(hook).stderr.splitlines()[-1]
    assert last.startswith("hook of module m (/m.toml): ") and why in last


def test_a_hook_that_hangs_is_killed_with_its_children() -> None:
    # That the pipes end shows that the children have ended: they hold them too.
    assert "not done after 0.5 s, killed" in run(sh("sleep 1000 & wait", 0.5)).stderr


def test_without_pidfd() -> None:
    how = "without pidfd"
    assert run(sh("true"), how=how).returncode == 0
    assert "killed by signal" in run(sh(f"kill -{signal.SIGUSR1.value} $$"), how=how).stderr
    assert "not done after" in run(sh("exec sleep 1000", 0.2), how=how).stderr


def test_accounts_are_named_inside_once_each() -> None:
    """Of two modules', and not those that are there anyway."""
    found = Module("a", accounts=("slurm:64030:64031", "root:7:7"))
    more = Module("b", accounts=("slurm:64030:64031",))
    injection, _ = modules.plan((found, more), {})
    assert injection.accounts == ("slurm:64030:64031", "root:7:7")
    known = (accounts.passwd(5, 6, "me", "", "/", "/bin/sh"), accounts.group(6, "us", "me"))
    assert accounts.other("root:7:7", known) == ("", "")
    assert accounts.other("us:7:8", known) == ("us:x:7:8::/nonexistent:/usr/sbin/nologin\n", "")
