"""Options and commands of other container tools, and what udi-run does with each: a table. Pure.

They are those of Docker, Podman and podman-hpc, Apptainer, Charliecloud, Sarus, enroot and pyxis.
Where udi-run can do the same, it does; for the others an error names udi-run's own way. The value
of an option is known to belong to it, so that it is not taken for the image. This module is
imported where an option is none of udi-run's own.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan import volumes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Foreign(Record):
    """A row of the table: an option of another tool.

    `names` are its names as typed, with their dashes; `takes` says whether it takes a value.
    `becomes` are the words of udi-run in its place, in which {} stands for the value; `how` names a
    function of _FORMS that rewrites the value before. If `only` is not empty, the option is
    accepted with these values alone. With `fine` the option is accepted and nothing needs to be
    done, and `line` says why. Else, where `becomes` is empty, it is an error, and `line` says what
    to write instead.
    """

    names: tuple[str, ...]
    takes: bool = False
    becomes: tuple[str, ...] = ()
    line: str = ""
    fine: bool = False
    only: tuple[str, ...] = ()
    how: str = ""


def _same(names: str, line: str, takes: bool = False, only: tuple[str, ...] = ()) -> Foreign:
    return Foreign(tuple(names.split()), takes, (), line, True, only)


def _ours(names: str, *becomes: str, how: str = "") -> Foreign:
    takes = any("{}" in word for word in becomes)
    return Foreign(tuple(names.split()), takes, becomes, how=how)


def _not(names: str, line: str, takes: bool = False) -> Foreign:
    return Foreign(tuple(names.split()), takes, (), line)


OPTIONS = (
    _same("-i --interactive", "standard input is the command's"),
    _same("-t --tty", "the terminal is the command's"),
    _same("--rm", "nothing remains of a container"),
    _same("--init", "the command is the caller's own process"),
    _same("--read-only", "the root is read-only"),
    _same("--no-home", "the home directory is not mounted unless --home says so"),
    _same("-U --userns", "each container has a user namespace"),
    _same("--nvccli --compat --no-eval", "it is so"),
    _same("--shm-size", "/dev/shm is the host's", takes=True),
    _same("--sig-proxy --log-driver --log-level --label", "no daemon, no record", True),
    Foreign(
        ("--network", "--net", "--ipc", "--pid", "--uts", "--cgroupns"),
        True,
        (),
        "network, processes, IPC and host name are the host's, as MPI needs them: leave it out",
        True,
        ("host",),
    ),
    _ours("-v", "--volume={}", how="volume"),
    _ours("-b -B --bind --container-mounts", "{}", how="binds"),
    _ours("--mount", "--volume={}", how="mount"),
    _ours("--nv", "--gpu=nvidia"),
    _ours("--rocm", "--gpu=amd"),
    Foreign(
        ("--gpus",),
        True,
        ("--gpu=auto",),
        "which GPUs a command sees: --gpu with CUDA_VISIBLE_DEVICES, or --device=nvidia.com/gpu=0",
        only=("all",),
    ),
    _ours("-w --pwd --cwd --cd --container-workdir", "--workdir={}"),
    _ours("--cleanenv --clear-env", "--clearenv"),
    _ours("--writable-tmpfs --rw --write --container-writable", "--writable"),
    _ours("--container-image", "--image={}"),
    _ours("--container-mount-home --mount-home", "--home"),
    _same("--no-container-mount-home", "the home directory is not mounted unless --home says so"),
    _ours("--container-entrypoint", "--entrypoint="),
    _ours("--set-env", "{}", how="set-env"),
    Foreign(
        ("--no-mount",),
        True,
        ("--no-cwd",),
        "site mounts: [[mount]] with enabled = false in ~/.config/rootless_udi/config.toml",
        only=("cwd",),
    ),
    _ours("-C --contain --containall --no-container-cwd", "--no-cwd"),
    _ours("--debug", "--verbose"),
    _not(
        "-d --detach", "the command is your own process: end the line with &, or submit it as a job"
    ),
    _not("-u --user", "you are you in a container, with your uid and groups: leave it out", True),
    _not("--group-add", "you keep all your groups: leave it out", True),
    _not("-f --fakeroot --root", "nobody is root in a container: leave it out, see --writable"),
    _not("--privileged --cap-add --add-caps", "there is no privilege to give: leave it out"),
    _not("--cap-drop --security-opt", "no privilege is left anyway: leave it out", True),
    _not("--name --cidfile", "a container has no name: leave it out; `udi ps` lists them", True),
    _not("--container-name", "ranks share one container anyway; by name: --share=NAME", True),
    _not("--hostname", "the host's name is kept: leave it out", True),
    _not("-p --publish -P --publish-all --expose", "the network is the host's: leave it out", True),
    _not("--memory --cpus --cpuset-cpus", "limits are the job's: leave it out", True),
    _not("--ulimit", "limits are the caller's: ulimit, before udi-run", True),
    _not("-c", "start elsewhere: --workdir=DIR; without the current folder: --no-cwd"),
    _not("-W", "a writable root: --writable; a folder to start in: --workdir=DIR"),
    _not("-H", "your home directory: --home; another one: --volume=DIR --env=HOME=DIR", True),
    _not("--tmpfs", "memory of the node: --volume=/tmp:/DIR:perNodeCache=size=1G", True),
    _not("-o --overlay", "changes go to memory with --writable", True),
    _not("--dns --add-host", "name resolution is the host's: leave it out", True),
    _not("--modules", "the site's modules: --module=A,B", True),
    _not("--restart", "there is no daemon to do that: leave it out", True),
    _not("--volumes-from --volume-driver", "only folders of the host: --volume=SRC:DST", True),
    _not("--unset-env", "a variable for the command alone: env -u NAME COMMAND", True),
    _not("--glibc --ssh", "the host's MPI brings what it needs: --mpi"),
)
COMMANDS = {
    "run": "",
    "shell": "",
    "help": "",
    "version": "",
    "exec": "in a new container: udi-run IMAGE COMMAND; in one that udi ps lists: udi exec",
    "pull": "udi pull IMAGE",
    "images": "udi images",
    "ls": "udi images, or udi ps for containers",
    "list": "udi images, or udi ps for containers",
    "ps": "udi ps",
    "login": "udi login REGISTRY",
    "logout": "udi logout REGISTRY",
    "rm": "nothing is left of a container; udi rm IMAGE removes an image",
    "rmi": "udi rm IMAGE",
    "delete": "udi rm IMAGE",
    "inspect": "udi inspect IMAGE",
    "info": "udi doctor",
    "doctor": "udi doctor",
    "build": "an image is built by another tool (docker, podman, buildah); udi pull takes it",
    "push": "udi push IMAGE",
    "save": "an image is one file already: udi inspect IMAGE names it",
    "load": "udi pull docker-archive:FILE, or udi pull - from a pipe",
    "convert": "udi pull docker-archive:FILE, or oci:DIR",
    "create": "a container begins with its command: udi-run IMAGE COMMAND",
    "start": "a container begins with its command: udi-run IMAGE COMMAND",
    "instance": "a container begins with its command: udi-run IMAGE COMMAND &",
    "stop": "one that is kept: udi stop NAME; else kill the process, which udi ps names",
    "kill": "a container is its command: kill the process, which udi ps names",
    "logs": "a container's output is its command's: redirect it",
    "compose": "each command is run by itself: udi-run IMAGE COMMAND",
}
"""Command -> what to type for it, where a command of another tool stands in the image's place. ""
is for those that udi-run does itself."""

_ROWS = {name: row for row in OPTIONS for name in row.names}


def option(argv: "Sequence[str]", at: int, ours: "Sequence[str]") -> "tuple[list[str], int]":
    """Return udi-run's words for the option at `argv[at]`, and the index of the word after it.

    `ours` are the names of udi-run's options, for a hint. Raises UdiError for an option that no
    tool has, and for one that udi-run can't do.
    """
    word = argv[at]
    name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], "", "")
    row = _ROWS.get(name)
    if row is None:
        raise _unknown(word, ours)
    at += 1
    rest = "" if word.startswith("--") else word[2:]
    if not row.takes:
        if equals:
            raise UdiError(f"option {name} takes no value, got {value!r}", _why(row))
        if row.line and not row.fine:
            raise _refused(name, row)
        return [*row.becomes, *([f"-{rest}"] if rest else [])], at
    if rest:
        value = rest.removeprefix("=")
    elif not equals:
        if at == len(argv):
            raise UdiError(f"option {name} needs a value", _why(row))
        value, at = argv[at], at + 1
    if (row.only and value not in row.only) or not (row.fine or row.becomes):
        raise _refused(f"{name} {value}", row)
    values = _FORMS[row.how](name, value) if row.how else [value]
    return [one.replace("{}", text) for one in row.becomes for text in values], at


def _why(row: Foreign) -> str:
    return row.line or f"here it is {' '.join(row.becomes).replace('{}', 'VALUE')}"


def _refused(what: str, row: Foreign) -> UdiError:
    return UdiError(f"option {what} is another tool's word", row.line)


def _unknown(word: str, ours: "Sequence[str]") -> UdiError:
    from difflib import get_close_matches

    name = word.partition("=")[0]
    known = [f"--{one}" for one in ours]
    near = get_close_matches(name, known, 2, 0.7) if word.startswith("--") else []
    near = near or [one for one in known if len(name) > 4 and one.startswith(name)]
    hint = f"did you mean {' or '.join(near)}?" if near else "see udi-run --help"
    return UdiError(f"unknown option {word}", hint)


def command(words: "Sequence[str]") -> list[str]:
    """Return udi-run's words for `words`, of which the first is one of COMMANDS.

    Raises UdiError, with what to type, for a command that udi-run does not do.
    """
    word, *rest = words
    if word in ("run", "shell"):
        return rest
    if word in ("help", "version"):
        return [f"--{word}"]
    raise UdiError(
        f"{word} is a command of another program, not an image",
        f"{COMMANDS[word]}; an image of that name is {word}:latest",
    )


def _absolute(name: str, path: str) -> str:
    if name == "--container-mounts" and path in _NO_FOLDERS:
        raise UdiError(f"option {name}: {path!r} is no folder of the host", _NO_FOLDERS[path])
    if not path.startswith("/"):
        what = "a named volume" if "/" not in path and "." not in path else "not absolute"
        hint = "a folder of the host is written whole: $PWD/DIR:/DIR"
        if name == "-v":
            hint += "; to be told more, --verbose"
        raise UdiError(f"option {name}: {path!r} is {what}", hint)
    return path


_IGNORED = ("z", "Z", "U", "cached", "delegated", "consistent", "nosuid", "nodev", "bind")
_CREATE = "x-create="
"""Of enroot: a mount point is made. Here it always is."""
_NO_FOLDERS = {
    "tmpfs": "memory of the node: --volume=/tmp:/DIR:perNodeCache=size=1G",
    "umount": "a mount of the site is left out by [[mount]] with enabled = false in "
    "~/.config/rootless_udi/config.toml",
}
"""What enroot and pyxis take in a folder's place, and what it is here."""
_FLAGS = {"rbind": "rec", "rshared": "slave", "rslave": "slave", "rprivate": "private"}
_FLAGS |= {"shared": "slave", "readonly": "ro", "image-src=/": "sqfs"}


def _flags(text: str) -> list[str]:
    words = text.replace(":", ",").split(",")
    return [_FLAGS.get(word, word) for word in words if word and not _ignored(word)]


def _ignored(word: str) -> bool:
    return word in _IGNORED or word.startswith(_CREATE)


def _volume(name: str, value: str) -> list[str]:
    """Rewrite SRC:DST[:FLAG,FLAG] of docker-run(1). A single path is source and destination."""
    source, _, rest = value.partition(":")
    target, _, flags = rest.partition(":")
    return [":".join([_absolute(name, source), target or source, *_flags(flags)])]


def _binds(name: str, value: str) -> list[str]:
    """Rewrite SRC[:DST[:FLAGS]],... of Apptainer and pyxis; a comma may also be before a flag."""
    found: list[str] = []
    for one in value.split(","):
        if found and (one in (*volumes.FLAGS, *_FLAGS) or _ignored(one)):
            found[-1] += f",{one}"
        else:
            found.append(one)
    return [f"--volume={text}" for one in found for text in _volume(name, one)]


def _mount(name: str, value: str) -> list[str]:
    """Rewrite KEY=VALUE,... of docker-run(1), --mount, or SRC:DST of enroot."""
    if "=" not in value:
        return _volume(name, value)
    pairs = dict(word.partition("=")[::2] for word in value.split(","))
    if pairs.pop("type", "bind") != "bind":
        raise UdiError(f"option {name} {value}: only binds", "memory: :perNodeCache=size=1G")
    source = next((pairs.pop(key) for key in ("source", "src") if key in pairs), "")
    places = [pairs.pop(key) for key in ("destination", "dst", "target") if key in pairs]
    if not source or not places:
        hint = "--volume=SRC:DST[:ro]"
        raise UdiError(f"option {name} {value}: no source or no destination", hint)
    flags = [key for key, word in pairs.items() if word in ("", "true", "1")]
    flags += [word for key, word in pairs.items() if key == "bind-propagation"]
    flags += ["sqfs"] if pairs.get("image-src") == "/" else []
    return [":".join([_absolute(name, source), places[0], *_flags(",".join(flags))])]


def _set_env(name: str, value: str) -> list[str]:
    """Rewrite NAME=VALUE, or the name of a file of such lines, of ch-run(1)."""
    return [f"--env={value}" if "=" in value else f"--env-file={value}"]


_FORMS: "dict[str, Callable[[str, str], list[str]]]" = {
    "volume": _volume,
    "binds": _binds,
    "mount": _mount,
    "set-env": _set_env,
}
"""Functions that rewrite a value: (the option as typed, its value) -> one value or several."""
