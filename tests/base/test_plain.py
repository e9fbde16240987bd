"""What comes from outside and is shown to a person: no terminal obeys it, and a line is a line."""

import ast
import json
import os
import pty
import select
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base import jsontext
from rootless_udi.base.errors import amount, plain
from tests.conftest import User
from tests.kit import images, plans
from tests.kit.places import TREE
from tests.test_rooms import MODULES

EVIL = "\x1b]0;owned\x07\x9b31m\u202egnp\r\n\x7fudi: hint: run this\u2028[/x]"


def is_clean(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n")) and "\nudi: hint: run" not in text


@given(st.text())
def test_plain_text_is_a_line_and_good_text_stays(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(text) == text or not text.isprintable()
    assert plain("".join(c for c in text if c.isprintable())).isprintable()


def test_how_it_is_spelled() -> None:
    assert plain("a\x1b[31m\n\u202e\udcffé中\xa0") == r"a\x1b[31m\n\u202e\udcffé中\xa0"
    assert plain("a\n\tb\x07", keep="\n\t") == "a\n\tb\\x07"


@given(
    st.recursive(
        st.text(st.characters(exclude_categories=())) | st.integers() | st.none(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_json_reads_back_equal_and_is_clean(document: object) -> None:
    text = jsontext.text(document)
    assert is_clean(text) or "udi: hint" in text
    # Two halves of a pair that stand side by side are one character in any JSON.
    halves = text.lower().count("\\ud")
    assert halves or json.loads(text) == document


def test_nothing_is_printed_but_through_guard() -> None:
    """`base.process` is where `plain` is applied; the others apply it themselves. What a joiner's
    plan says is for programs, and every byte of it counts; so it is with a gateway's worker."""
    allowed = {"process.py", "failures.py", "lines.py", "explain.py", "joinplan.py"}
    allowed.add("worker.py")
    streams = {"sys.stdout.write", "sys.stderr.write", "print", "os.write"}
    for path in MODULES.values():
        if path.name in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in streams:
                continue
            first = ast.unparse(node.args[0]) if node.args else ""
            if ast.unparse(node.func) == "os.write" and first not in ("1", "2"):
                continue
            raise AssertionError(f"{path}:{node.lineno}: {ast.unparse(node)}")


@pytest.fixture
def evil(user: User) -> str:
    """An image all of whose texts are hostile, in the store, by the name that is returned."""
    config = {
        "Env": ["PATH=/bin", f"EVIL={EVIL}"],
        "Labels": {EVIL: EVIL},
        "WorkingDir": f"/{EVIL}",
        "Entrypoint": [EVIL],
        "User": EVIL,
    }
    layout = user.home / "lay\x1b[31m\nout"
    images.busybox_layout(layout, config=config)
    done = user.run("udi", "pull", f"oci:{layout}:latest")
    assert done.returncode == 0, done.stderr
    assert is_clean(done.stderr)
    return f"oci:{layout}:latest"


@pytest.mark.needs("mksquashfs", "busybox")
def test_listings_and_reports(user: User, evil: str) -> None:
    for words in (
        ("udi", "images"),
        ("udi", "images", "--json"),
        ("udi", "images", "--digests"),
        ("udi", "inspect", evil),
        ("shifterimg", "images"),
        ("udi-run", "--explain", evil),
        ("udi-run", "--explain=json", evil),
        ("udi-run", "--explain", "--workdir", "--entrypoint", evil),
        ("udi", "mpi", "check", evil),
        ("udi", "rm", evil),
    ):
        done = user.run(*words)
        assert "Traceback" not in done.stderr, words
        assert is_clean(done.stdout) and is_clean(done.stderr), (words, done.stdout, done.stderr)
        if words[1] in ("images", "inspect") or words[1:2] == ("--explain",):
            assert done.returncode == 0 and "x1b" in (done.stdout + done.stderr).lower().replace(
                "u001b", "x1b"
            ), (words, done)
    done = user.run("udi", "images", "--json")
    assert json.loads(done.stdout) == []


@pytest.mark.needs("mksquashfs", "busybox", "userns", "fuse")
def test_a_start_and_its_container(user: User, evil: str) -> None:
    done = user.run("udi-run", "--share=off", "--workdir", evil, "sh", "-c", 'echo "$EVIL"')
    assert is_clean(done.stderr)
    assert "can't be entered in the container" in done.stderr and done.returncode == 125
    done = user.run("udi-run", "--share=off", "--entrypoint", evil)
    assert done.returncode in (126, 127) and is_clean(done.stderr)
    holder = user.popen(
        "udi-run", "--share=x", evil, "sh", "-c", "echo; read x", stdin=-1, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == "\n"
    for words in (("udi", "ps"), ("udi", "ps", "--json")):
        done = user.run(*words)
        assert is_clean(done.stdout) and "lay" in done.stdout, done
    holder.communicate("\n", timeout=120)


@pytest.mark.parametrize(
    "words",
    [
        ("udi", "pull", f"oci:/nowhere{EVIL}"),
        ("udi", "pull", f"docker-archive:/nowhere{EVIL}"),
        ("udi", "pull", f"host/{EVIL}"),
        ("udi", "inspect", f"host/{EVIL}"),
        ("udi-run", f"/nowhere{EVIL}", "true"),
        ("udi-run", f"{EVIL}", "true"),
        ("udi", "mpi", "check", f"/nowhere{EVIL}"),
        ("shifterimg", "pull", EVIL),
        ("udi", "config", "import", f"/nowhere{EVIL}"),
    ],
)
def test_names_in_messages(user: User, words: tuple[str, ...]) -> None:
    done = user.run(*words)
    assert done.returncode in (1, 2, 125) and "Traceback" not in done.stderr
    assert is_clean(done.stdout + done.stderr), done


def test_a_line_has_bounds(user: User) -> None:
    done = user.run("udi-run", "/" + "x" * 100_000, "true")
    assert len(done.stderr) < 10_000 and "more characters)" in done.stderr


def test_a_locale_without_the_letters(user: User) -> None:
    config = user.home / ".config/rootless_udi"
    config.mkdir(parents=True)
    env = {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = user.run("udi", "pull", "oci:/中", env=env)
    assert done.returncode == 125 and "Traceback" not in done.stderr


@pytest.mark.needs("mksquashfs", "busybox")
def test_on_a_terminal_rich_reads_no_markup_of_others(user: User) -> None:
    """Progress bars are drawn with escapes; what the image says must not be among them."""
    layout = user.home / "[/nope][link=evil]\x07lay\x1b[31mout"
    images.busybox_layout(layout)
    master, slave = pty.openpty()
    user.env["TERM"] = "xterm"
    child = user.popen(
        "udi", "pull", f"oci:{layout}:latest", stderr=slave, stdout=subprocess.PIPE, stdin=slave
    )
    os.close(slave)
    said = b""
    while select.select([master], [], [], 60)[0]:
        try:
            data = os.read(master, 1 << 16)
        except OSError:
            break
        if not data:
            break
        said += data
    assert child.wait(60) == 0, said
    os.close(master)
    assert b"\x07" not in said and b"\x1b[31mout" not in said and b"Traceback" not in said


def test_a_plan_reads_back(user: User) -> None:
    """--explain=json is for programs too."""
    done = user.run("udi-run", "--explain=json", TREE / "tests")
    assert done.returncode == 125 or plans.from_json(done.stdout)
    assert Path(TREE).is_dir()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (949, "949 B"),
        (1000, "1.0 kB"),
        (999_940, "999.9 kB"),
        (999_950, "1.0 MB"),
        (10**12, "1.0 TB"),
        (2**60, "1.2 EB"),
    ],
)
def test_amounts_are_told_in_the_unit_that_they_round_to(size: int, text: str) -> None:
    assert amount(size) == text
