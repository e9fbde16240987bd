"""Words of other tools: each row of the table, read by udi-run's own parser."""

from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.plan import foreign, options
from rootless_udi.plan.options import Request, parse

pytestmark = pytest.mark.alike

VALUES = {"volume": "/a:/b", "binds": "/a:/b", "mount": "type=bind,src=/a,dst=/b", "set-env": "A=1"}
BECOMES: dict[str, dict[str, Any]] = {
    "--volume={}": {"volume": ("/a:/b",)},
    "--gpu=nvidia": {"gpu": "nvidia"},
    "--gpu=amd": {"gpu": "amd"},
    "--gpu=auto": {"gpu": "auto"},
    "--workdir={}": {"workdir": "/x"},
    "--image={}": {"image": "/x"},
    "--clearenv": {"clearenv": True},
    "--writable": {"writable": True},
    "--home": {"home": True},
    "--entrypoint=": {"entrypoint": ""},
    "--no-cwd": {"no_cwd": True},
    "--verbose": {"verbose": True},
}


def value_of(row: foreign.Foreign) -> str:
    return row.only[0] if row.only else VALUES.get(row.how, "/x")


NAMES = [(name, row) for row in foreign.OPTIONS for name in row.names]


@pytest.mark.parametrize(("name", "row"), NAMES, ids=[name for name, _ in NAMES])
def test_each_option(name: str, row: foreign.Foreign) -> None:
    value = value_of(row)
    spellings = [[name]]
    if row.takes:
        spellings = [[name, value], [f"{name}={value}"]]
        spellings += [[f"{name}{value}"]] if not name.startswith("--") else []
    for words in spellings:
        if not row.fine and not row.becomes:
            with pytest.raises(UdiError, match="is another tool's word") as caught:
                parse([*words, "img", "cmd"], {})
            assert caught.value.hint == row.line
            continue
        wanted: dict[str, Any] = {"image": "img", "command": ("cmd",)}
        for word in row.becomes:
            if word == "{}":
                wanted |= {"env": ("A=1",)} if row.how == "set-env" else {"volume": ("/a:/b",)}
            else:
                wanted |= BECOMES[word]
        if "--image={}" in row.becomes:
            wanted["command"] = ("img", "cmd")
        assert parse([*words, "img", "cmd"], {}) == Request(**wanted), words


@pytest.mark.parametrize(("name", "row"), NAMES, ids=[name for name, _ in NAMES])
def test_each_option_amiss(name: str, row: foreign.Foreign) -> None:
    """A value that is missing, not wanted or not known is an error, and never the image."""
    if row.takes:
        with pytest.raises(UdiError, match=f"^option {name} needs a value$"):
            parse([name], {})
    elif name.startswith("--"):
        with pytest.raises(UdiError, match=f"^option {name} takes no value, got 'x'$"):
            parse([f"{name}=x", "img"], {})
    if row.only:
        with pytest.raises(UdiError, match=f"^option {name} other is another tool's word$"):
            parse([name, "other", "img"], {})


def test_no_name_is_ours_or_is_there_twice() -> None:
    ours = {f"--{one.name}" for one in options.OPTIONS}
    ours |= {f"-{one.short}" for one in options.OPTIONS if one.short}
    names = [name for name, _ in NAMES]
    assert len(set(names)) == len(names) and not ours & set(names)
    assert all(len(name) == 2 or name.startswith("--") for name in names)
    assert all(row.line or row.becomes for row in foreign.OPTIONS)


def test_options_and_foreign_have_the_same_commands() -> None:
    assert list(foreign.COMMANDS) == options.COMMANDS.split()


@pytest.mark.parametrize("word", sorted(foreign.COMMANDS))
def test_each_command(word: str) -> None:
    line = foreign.COMMANDS[word]
    if line:
        with pytest.raises(UdiError, match=f"^{word} is a command of another program") as caught:
            parse(["--rm", word, "img", "cmd"], {})
        assert line in caught.value.hint
    elif word in ("help", "version"):
        assert getattr(parse([word], {}), word)
    else:
        got = parse(["--verbose", word, "-it", "img", "--", "cmd"], {})
        assert got == Request(image="img", command=("cmd",), verbose=True)
    # Where the image is known, it is the command.
    assert parse(["--image=img", word], {}).command == (word,)
    assert parse([word], {"UDI_IMAGE": "img"}).command == (word,)
    assert parse([f"{word}:latest"], {}).image == f"{word}:latest"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["-it", "img"], {}),
        (["-ti", "img"], {}),
        (["-itv/a:/b", "img"], {"volume": ("/a:/b",)}),
        (["-Eit", "-w", "/x", "img"], {"clearenv": True, "workdir": "/x"}),
        (["-v", "/a:/b:ro,Z", "img"], {"volume": ("/a:/b:ro",)}),
        (["-v", "/a", "img"], {"volume": ("/a:/a",)}),
        (["-v/a:/b:rslave", "img"], {"volume": ("/a:/b:slave",)}),
        (["-B", "/a,/b:/c:ro,/d", "img"], {"volume": ("/a:/a", "/b:/c:ro", "/d:/d")}),
        (["--bind", "/a:/b:ro,/c", "img"], {"volume": ("/a:/b:ro", "/c:/c")}),
        (["--container-mounts=/a:/b:ro,rslave", "img"], {"volume": ("/a:/b:ro:slave",)}),
        (["--mount", "type=bind,source=/a,target=/b,readonly", "img"], {"volume": ("/a:/b:ro",)}),
        (["--mount=src=/a,dst=/b,ro=true", "img"], {"volume": ("/a:/b:ro",)}),
        (["--mount", "/a:/b", "img"], {"volume": ("/a:/b",)}),
        (["--bind", "/a.sqfs:/b:image-src=/", "img"], {"volume": ("/a.sqfs:/b:sqfs",)}),
        (["--mount=src=/a.sqfs,dst=/b,image-src=/", "img"], {"volume": ("/a.sqfs:/b:sqfs",)}),
        (["--mount=src=/a,dst=/b,readonly=false", "img"], {"volume": ("/a:/b",)}),
        (["--workdir", "/x", "img"], {"workdir": "/x"}),
        (["--workdir", "/x.sqfs", "pwd"], {"workdir": "", "image": "/x.sqfs", "command": ("pwd",)}),
        (["--workdir", "/x"], {"workdir": "", "image": "/x"}),
        (["--entrypoint", "/a", "img", "hi"], {"entrypoint": "/a", "command": ("hi",)}),
        (["--entrypoint", "a/b", "hi"], {"entrypoint": "", "image": "a/b", "command": ("hi",)}),
        (["--image=img", "--entrypoint", "/x", "y"], {"entrypoint": "", "command": ("/x", "y")}),
        (["--gpu", "all", "img"], {"gpu": "all"}),
        (["--gpu", "cdi:x", "img"], {"gpu": "cdi:x"}),
        (["--gpu", "img"], {"gpu": ""}),
        (["--mpi", "mpich", "img"], {"mpi": "mpich"}),
        (["--explain", "json", "img"], {"explain": "json"}),
        (["--net=host", "--ipc", "host", "img"], {}),
        (["img", "--", "cmd"], {"command": ("cmd",)}),
        (["img", "cmd", "--"], {"command": ("cmd", "--")}),
    ],
)  # fmt: skip
def test_shapes(words: list[str], wanted: dict[str, Any]) -> None:
    assert parse(words, {}) == Request(**{"image": "img", **wanted})


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["-v", "ubuntu:24.04", "ls"], "option -v: 'ubuntu' is a named volume", "--verbose"),
        (["-v", ".:/work", "img"], "option -v: '.' is not absolute", "$PWD/DIR:/DIR"),
        (["--bind", "data:/d", "img"], "option --bind: 'data' is a named volume", "$PWD/DIR"),
        (["--mount", "type=tmpfs,dst=/x", "img"], "only binds", "perNodeCache"),
        (["--mount", "src=/a", "img"], "no source or no destination", "--volume=SRC:DST"),
        (["--entrypoint", "bash", "img"], "is bash its value or the image?", "--entrypoint=bash"),
        (["--volum=/a", "img"], "unknown option --volum=/a", "did you mean --volume?"),
        (["--enviroment-file", "x"], "unknown option --enviroment-file", "did you mean --env-file"),
        (["--work", "x"], "unknown option --work", "did you mean --workdir?"),
        (["-Z", "x"], "unknown option -Z", "see udi-run --help"),
    ],
)
def test_what_is_refused(words: list[str], message: str, hint: str) -> None:
    with pytest.raises(UdiError) as caught:
        parse(words, {})
    assert message in caught.value.message and hint in caught.value.hint
