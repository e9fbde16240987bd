"""Shifter's `shifter` command line and variables, translated to udi-run's. Pure.

Options are read as getopt_long(3) reads them for Shifter: short ones may be bundled, long ones
abbreviated, optional arguments need "=" (or stand close to the letter), and the first word that is
no option begins the command.
"""

from rootless_udi.base.errors import NOT_EXECUTABLE, OURS, UdiError
from rootless_udi.base.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NONE, REQUIRED, OPTIONAL = "none", "required", "optional"
LONG = {
    "clearenv": ("E", NONE),
    "entry": ("entrypoint", OPTIONAL),
    "entrypoint": ("entrypoint", OPTIONAL),
    "env": ("e", REQUIRED),
    "env-file": ("env-file", REQUIRED),
    "help": ("h", NONE),
    "image": ("i", REQUIRED),
    "module": ("m", REQUIRED),
    "verbose": ("v", NONE),
    "volume": ("V", REQUIRED),
    "workdir": ("w", OPTIONAL),
}
SHORT = {
    "E": NONE,
    "V": REQUIRED,
    "e": REQUIRED,
    "h": NONE,
    "i": REQUIRED,
    "m": REQUIRED,
    "n": NONE,
    "v": NONE,
    "w": OPTIONAL,
}
TYPES = ("docker", "id", "custom", "local")
_SHELL = "/bin/sh"
FAILED, NOT_STARTED = 1, 127
"""Shifter's exit statuses: for its own errors, and for a command that can't be executed."""

USAGE = """\
usage: shifter [OPTIONS] [COMMAND [ARG...]]
Shifter's command line for udi-run, which has more: see udi-run --help.

  -i, --image=[TYPE:]IMAGE    docker:NAME[:TAG], id:HEX, custom:NAME or local:DIRECTORY
  -V, --volume=FROM:TO[:FLAG...][;...]
                              bind FROM to TO; flags: ro, rw, rec, slave, private,
                              perNodeCache=size=SIZE[,bs=SIZE][,fs=FS][,method=METHOD]
  -m, --module=A,B|none       modules in place of the site's default ones
  -e, --env=NAME=VALUE        set a variable
      --env-file=FILE         set the variables listed in FILE
  -E, --clearenv              start from an empty environment
  -w, --workdir[=DIR]         start in DIR, or in the image's WORKDIR
      --entrypoint[=CMD]      run CMD or the image's ENTRYPOINT before the arguments
  -v, --verbose               say what is done
  -h, --help                  print this

Variables: SHIFTER_IMAGETYPE with SHIFTER_IMAGE, SHIFTER_IMAGEREQUEST, SHIFTER_VOLUME and
SHIFTER_MODULE, and the same after SLURM_SPANK_; options count more.
"""


class Given(Record):
    """A command line as read. An option that comes twice has its last argument, a list has all.

    An optional argument that is left out is "". `entrypoint` and `workdir` are None where they are
    not given.
    """

    image: str = ""
    volumes: tuple[str, ...] = ()
    modules: str = ""
    env: tuple[str, ...] = ()
    env_file: str = ""
    clearenv: bool = False
    workdir: str | None = None
    entrypoint: str | None = None
    verbose: bool = False
    help: bool = False
    command: tuple[str, ...] = ()


def translate(argv: "Sequence[str]", environ: "Mapping[str, str]") -> "list[str] | None":
    """Return udi-run's argv (without its name) for Shifter's; None where --help is asked for.

    Raises UdiError, with Shifter's status, for what Shifter refuses.
    """
    try:
        given = read(argv)
        return None if given.help else _words(given, environ)
    except UdiError as error:
        raise UdiError(error.message, error.hint, FAILED) from None


def _words(given: Given, environ: "Mapping[str, str]") -> list[str]:
    words = []
    image = given.image or _image(environ)
    if image:
        words.append(f"--image={reference(image)}")
    elif not environ.get("UDI_IMAGE"):
        raise UdiError("no image is given", "shifter --image=NAME[:TAG] COMMAND")
    volumes = given.volumes or tuple(text for text in (_variable(environ, "VOLUME"),) if text)
    words += [f"--volume={text}" for text in volumes]
    modules = given.modules or _variable(environ, "MODULE")
    if modules:
        words.append(f"--module={modules}")
    if given.env_file:
        words.append(f"--env-file={given.env_file}")
    for pair in given.env:
        name, _, value = pair.partition("=")
        if not name or not value:
            raise UdiError(f"--env {pair!r} is not NAME=VALUE", "Shifter wants both to be there")
        words.append(f"--env={pair}")
    if given.clearenv:
        words.append("--clearenv")
    for name, text in (("workdir", given.workdir), ("entrypoint", given.entrypoint)):
        if text is not None:
            words.append(f"--{name}={text}" if text else f"--{name}")
    if given.verbose:
        words.append("--verbose")
    command = given.command
    if not command and given.entrypoint is None:
        # Shifter never runs an image's CMD alone.
        command = _shell(environ.get("SHELL", ""))
    return [*words, "--", *command]


def _shell(wanted: str) -> tuple[str, ...]:
    """Return the command of a bare `shifter`: the user's shell, else /bin/sh."""
    if not wanted.startswith("/") or wanted == _SHELL:
        return (_SHELL,)
    return (_SHELL, "-c", f'[ -x "$0" ] && exec "$0"; exec {_SHELL}', wanted)


def _image(environ: "Mapping[str, str]") -> str:
    kind, image = _variable(environ, "IMAGETYPE"), _variable(environ, "IMAGE")
    if kind and image:
        return f"{kind}:{image}"
    return _variable(environ, "IMAGEREQUEST")


def _variable(environ: "Mapping[str, str]", name: str) -> str:
    """Return SHIFTER_`name`, or what Slurm's plugin made of it."""
    return environ.get(f"SHIFTER_{name}") or environ.get(f"SLURM_SPANK_SHIFTER_{name}") or ""


def reference(text: str) -> str:
    """Return udi-run's IMAGE for Shifter's [TYPE:]IMAGE; a name without a type stays as it is.

    Raises UdiError.
    """
    kind, colon, name = text.partition(":")
    if not colon or kind not in TYPES:
        return text
    if not name:
        raise UdiError(f"image {text!r}: nothing after {kind}:", "write docker:NAME[:TAG]")
    if kind == "id":
        name = name.removeprefix("sha256:").lower()
        if len(name) != 64 or not all(c in "0123456789abcdef" for c in name):
            raise UdiError(
                f"image {text!r}: an id has 64 of 0-9 and a-f",
                "`shifterimg lookup NAME` prints the whole one",
            )
        return f"sha256:{name}"
    if kind == "local":
        if not name.startswith("/"):
            raise UdiError(f"image {text!r}: the path is not absolute", "write local:/DIRECTORY")
        return name
    return name if kind == "custom" else f"docker:{name}"


def read(argv: "Sequence[str]") -> Given:
    """Read a command line. Raises UdiError for an unknown, ambiguous or incomplete option."""
    values: dict[str, list[str]] = {}
    words = list(argv)
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            key, kind = _long(name)
            given = text if equals else None
            if given is not None and kind == NONE:
                raise UdiError(f"option --{name} takes no argument", "see shifter --help")
            _take(values, word.partition("=")[0], key, kind, given, words)
        else:
            _short(values, word[1:], words)
    return _given(values, words)


def _long(name: str) -> tuple[str, str]:
    if name in LONG:
        return LONG[name]
    found = {LONG[long] for long in LONG if name and long.startswith(name)}
    if len(found) == 1:
        return found.pop()
    if found:
        names = ", ".join(f"--{long}" for long in LONG if long.startswith(name))
        raise UdiError(f"option --{name} is ambiguous: {names}", "write it out")
    raise UdiError(f"unknown option --{name}", "see shifter --help")


def _short(values: dict[str, list[str]], letters: str, words: list[str]) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        kind = SHORT.get(letter)
        if kind is None:
            raise UdiError(f"unknown option -{letter}", "see shifter --help")
        if kind == NONE:
            values.setdefault(letter, []).append("")
            continue
        _take(values, f"-{letter}", letter, kind, letters or None, words)
        return


def _take(
    values: dict[str, list[str]],
    shown: str,
    key: str,
    kind: str,
    given: str | None,
    words: list[str],
) -> None:
    if given is None and kind == REQUIRED:
        if not words:
            raise UdiError(f"option {shown} needs an argument", "see shifter --help")
        given = words.pop(0)
    if not given and kind == REQUIRED:
        raise UdiError(f"option {shown}: its argument is empty", "is a variable unset?")
    values.setdefault(key, []).append(given or "")


def _given(values: dict[str, list[str]], words: list[str]) -> Given:
    def last(key: str) -> str:
        return values[key][-1] if key in values else ""

    return Given(
        image=last("i"),
        volumes=tuple(values.get("V", ())),
        modules=last("m"),
        env=tuple(values.get("e", ())),
        env_file=last("env-file"),
        clearenv="E" in values,
        workdir=last("w") if "w" in values else None,
        entrypoint=last("entrypoint") if "entrypoint" in values else None,
        verbose="v" in values,
        help="h" in values,
        command=tuple(words),
    )


def status(ours: int) -> int:
    """Return Shifter's exit status for udi-run's own (125, 126, 127); others are the command's."""
    return {OURS: FAILED, NOT_EXECUTABLE: NOT_STARTED}.get(ours, ours)
