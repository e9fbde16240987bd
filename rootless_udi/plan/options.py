"""udi-run's command line: a table of its options, and the loop that parses it. Pure.

--help, completion and the manual page are made from the same table. argparse is not used since
importing it costs a start 10 ms. Options end at the first word that is none, as in Shifter and as
POSIX has it. So the command may have options of its own without a "--" before it.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record

SQUASHFS_SUFFIXES = (".sqfs", ".squashfs", ".squash", ".sqsh")
SIF = ".sif"
FILE_SUFFIXES = (*SQUASHFS_SUFFIXES, SIF)
"""By these an image is known to be a file that is named from the current folder."""
"""The endings of a name that make a file an image, without a look at it."""
FLAG, VALUE, LIST, OPTIONAL = "flag", "value", "list", "optional"


class Option(Record):
    """An option of the table.

    `kind`: FLAG takes no value; VALUE takes one, the last counts; LIST may be given several times;
    OPTIONAL may have a value. `meta` stands for the value in --help, `text` explains the option,
    `short` is its letter, `choices` are the values that are allowed.
    """

    name: str
    kind: str
    meta: str
    text: str
    short: str = ""
    shares: bool = True
    """Whether ranks that share a container must give the same; otherwise each rank has its own."""
    choices: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    """For OPTIONAL: which next words are the option's value (`--mpi openmpi IMAGE`) and not the
    image.

    A word stands for itself; "x:" for words that begin so; "/" for an absolute path that does not
    end like a squashfs file; "?" for a word that could be either, which is an error."""

    @property
    def field(self) -> str:
        """The name of the field of Request that it sets."""
        return self.name.replace("-", "_")


OPTIONS = (
    Option("image", VALUE, "IMAGE", "the image, in place of the first argument"),
    Option(
        "edf",
        VALUE,
        "NAME|FILE",
        "image, mounts and variables by CSCS's environment definition file",
        shares=False,
    ),
    Option("volume", LIST, "SRC[:DST[:FLAGS]]", "bind SRC of the host to DST", "V"),
    Option("no-cwd", FLAG, "", "the current folder stays outside"),
    Option("home", FLAG, "", "your home directory inside, at its own path"),
    Option("writable", FLAG, "", "a writable root in memory, gone at the end"),
    Option("env", LIST, "NAME=VALUE", "set a variable", "e", shares=False),
    Option("env-file", LIST, "FILE", "set the variables listed in FILE", "", shares=False),
    Option("clearenv", FLAG, "", "start from an empty environment", "E", shares=False),
    Option(
        "workdir",
        OPTIONAL,
        "DIR",
        "start in DIR, or in the image's WORKDIR",
        "",
        shares=False,
        next=("/",),
    ),
    Option(
        "entrypoint",
        OPTIONAL,
        "CMD",
        "run CMD, or the image's ENTRYPOINT, before the arguments",
        "",
        shares=False,
        next=("/", "?"),
    ),
    Option("module", VALUE, "A,B|none", "site modules, in place of the site's default ones", "m"),
    Option(
        "mpi",
        OPTIONAL,
        "WHICH",
        "the host's MPI: auto, mpich, openmpi, abi, PROFILE, none",
        next=("auto", "mpich", "openmpi", "abi", "none"),
    ),
    Option(
        "mpi-compat",
        VALUE,
        "HOW",
        "how close the versions must be",
        choices=("warn", "major", "full", "strict"),
    ),
    Option(
        "mpi-glibc",
        VALUE,
        "WHEN",
        "the host's C library, where --mpi or --gpu need it",
        choices=("auto", "never"),
    ),
    Option(
        "gpu",
        OPTIONAL,
        "WHICH",
        "the host's GPUs: auto (all), nvidia, amd, intel, cdi:NAME, none",
        next=("auto", "all", "nvidia", "amd", "intel", "cdi:", "none"),
    ),
    Option("device", LIST, "VENDOR/CLASS=NAME", "a device by its CDI name"),
    Option("share", VALUE, "HOW", "one container for a node's ranks: auto, off, NAME"),
    Option("keep", VALUE, "SECONDS", "the container waits so long for the next start to join it"),
    Option(
        "fuse", VALUE, "SERVER", "who serves the image: auto, udi, squashfuse_ll, directory, ..."
    ),
    Option(
        "layer",
        VALUE,
        "KIND",
        "how missing mount points are made: auto, overlay, underlay",
        choices=("auto", "overlay", "underlay"),
    ),
    Option("trace", VALUE, "FILE", "write what is read of the image to FILE (see udi profile)"),
    Option(
        "pull",
        VALUE,
        "WHEN",
        "fetch the image: missing, lazy, never, always",
        shares=False,
        choices=("missing", "lazy", "never", "always"),
    ),
    Option("platform", VALUE, "OS/ARCH[/VARIANT]", "the image for that, e.g. linux/amd64/v2"),
    Option("insecure", FLAG, "", "fetch over plain HTTP", shares=False),
    Option(
        "explain",
        OPTIONAL,
        "json|wide",
        "print what would be done and why, and do nothing",
        "",
        shares=False,
        choices=("", "json", "wide"),
        next=("json", "wide"),
    ),
    Option("shifter", FLAG, "", "what Shifter's containers have besides: /var/shifterConfig.json"),
    Option("verbose", FLAG, "", "say what is done", shares=False),
    Option("quiet", FLAG, "", "no warnings and notes, errors only", "q", shares=False),
    Option("version", FLAG, "", "print the version", "", shares=False),
    Option("help", FLAG, "", "print this", "h", shares=False),
)
COMMANDS = (
    " run shell help version exec pull images ls list ps login logout rm rmi delete inspect info "
    "doctor build push save load convert create start instance stop kill logs compose "
)
"""Commands of other tools, which are no images (the keys of `foreign.COMMANDS`, as one text)."""
_BY_NAME = {option.name: option for option in OPTIONS}
_BY_SHORT = {option.short: option for option in OPTIONS if option.short}


class Request(Record):
    """What the caller asks for: a field for each option of the table, and the command.

    An option that is not given is None, "" or (). One of OPTIONAL is "" if given without a value.
    """

    image: str = ""
    command: tuple[str, ...] = ()
    edf: str | None = None
    volume: tuple[str, ...] = ()
    no_cwd: bool = False
    home: bool = False
    writable: bool = False
    env: tuple[str, ...] = ()
    env_file: tuple[str, ...] = ()
    clearenv: bool = False
    workdir: str | None = None
    entrypoint: str | None = None
    module: str | None = None
    mpi: str | None = None
    mpi_compat: str | None = None
    mpi_glibc: str | None = None
    gpu: str | None = None
    device: tuple[str, ...] = ()
    share: str | None = None
    keep: str | None = None
    fuse: str | None = None
    layer: str | None = None
    trace: str | None = None
    pull: str | None = None
    platform: str | None = None
    insecure: bool = False
    explain: str | None = None
    shifter: bool = False
    verbose: bool = False
    quiet: bool = False
    version: bool = False
    help: bool = False


def parse(argv: "list[str]", environ: "dict[str, str]") -> Request:
    """Return the request of a command line, `argv` without the program's name.

    The variables UDI_IMAGE, UDI_EDF, UDI_VOLUME, UDI_MODULE, UDI_MPI, UDI_GPU, UDI_FUSE,
    UDI_LAYER, UDI_SHARE and UDI_KEEP stand for options that are not given; a plugin of the workload
    manager may set them. If --image, --edf or one of their variables names the image, all words
    after the options are the command. Else the first is the image, and a "--" may follow it.
    Options and commands of other tools are replaced as `foreign` says. Raises UdiError for what is
    not understood.
    """
    values: dict[str, object] = {}
    named = bool(environ.get("UDI_IMAGE") or environ.get("UDI_EDF"))
    rest = _options(argv, values, named)
    named = named or "edf" in values
    if rest and not named and "image" not in values and f" {rest[0]} " in COMMANDS:
        from rootless_udi.plan import foreign

        rest = _options(foreign.command(rest), values, named)
    keep = "keep" in values
    for name in ("image", "edf", "module", "mpi", "gpu", "fuse", "layer", "share", "keep"):
        text = environ.get("UDI_" + name.upper())
        if text and name not in values:
            values[name] = text
    if environ.get("UDI_VOLUME") and "volume" not in values:
        values["volume"] = (environ["UDI_VOLUME"],)
    image = str(values.pop("image", ""))
    if not image and rest and "edf" not in values:
        image, rest = rest[0], rest[2 if rest[1:2] == ["--"] else 1 :]
    if image.endswith(SIF) and not rest:
        # Without a command Apptainer runs what the file says.
        values.setdefault("entrypoint", "")
    request = Request(image=image, command=tuple(rest), **values)  # type: ignore[arg-type]
    if not image and request.edf is None and not (request.help or request.version):
        raise UdiError("no image is given", "udi-run [OPTIONS] IMAGE [COMMAND [ARG...]]")
    if request.keep is not None:
        from rootless_udi.plan import keeping

        keeping.check(request, asked=keep)
    return request


def leading(argv: "list[str]") -> "tuple[dict[str, object], list[str]]":
    """Return the leading options of `argv` as fields of a Request, and what follows them.

    For who takes another word than an image there. Raises UdiError as `parse`.
    """
    values: dict[str, object] = {}
    return values, _options(argv, values, False)


def _options(argv: "list[str]", values: "dict[str, object]", named: bool) -> "list[str]":
    """Put the leading options of `argv` into `values`; return what follows them.

    `named`: the image is known already, so that the first other word begins the command.
    """
    at = 0
    while at < len(argv):
        word = argv[at]
        if word == "--":
            return argv[at + 1 :]
        if not word.startswith("-") or word == "-":
            break
        at += 1
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            option = _BY_NAME.get(name)
            given = text if equals else None
        else:
            option, given = _BY_SHORT.get(word[1]), word[2:] or None
            if option is not None and option.kind == FLAG and given:
                argv = [*argv[:at], "-" + given, *argv[at:]]
                given = None
        if option is None:
            from rootless_udi.plan import foreign

            ours, at = foreign.option(argv, at - 1, [*_BY_NAME])
            argv, at = [*ours, *argv[at:]], 0
            continue
        if given is None and option.kind in (VALUE, LIST):
            if at == len(argv):
                raise UdiError(f"option {word} needs a value: {option.meta}")
            given = argv[at]
            at += 1
        elif given is None and option.next and not (named or "image" in values or "edf" in values):
            given = _next(option, argv[at : at + 2])
            at += given is not None
        _set(values, option, given)
    return argv[at:]


def _set(values: "dict[str, object]", option: Option, given: str | None) -> None:
    if option.kind == FLAG:
        if given is not None:
            raise UdiError(f"option --{option.name} takes no value, got {given!r}")
        values[option.field] = True
        return
    text = given or ""
    if not text and option.kind in (VALUE, LIST):
        raise UdiError(f"option --{option.name} needs a value: {option.meta}")
    if option.choices and text not in option.choices:
        known = ", ".join(c for c in option.choices if c)
        raise UdiError(f"option --{option.name}: unknown {text!r}", f"one of {known}")
    if option.kind == LIST:
        before = values.get(option.field, ())
        assert isinstance(before, tuple)
        values[option.field] = (*before, text)
    else:
        values[option.field] = text


def _next(option: Option, words: "list[str]") -> str | None:
    """Return the first of `words` if it is the value of `option`; None if it is the image.

    Raises UdiError where it could be both.
    """
    if len(words) < 2:
        return None
    word = words[0]
    for form in option.next:
        if form == "/":
            if word.startswith("/") and not word.endswith(FILE_SUFFIXES):
                return word
        elif form == "?":
            if not word.startswith("-") and not any(c in word for c in "/:@."):
                raise UdiError(
                    f"option --{option.name} {word}: is {word} its value or the image?",
                    f"--{option.name}={word} IMAGE, or --{option.name} --image={word}",
                )
        elif word == form or (form.endswith(":") and word.startswith(form)):
            return word
    return None


def usage() -> str:
    """Return the text of --help."""
    lines = ["usage: udi-run [OPTIONS] IMAGE [COMMAND [ARG...]]", "", "options:"]
    for option in OPTIONS:
        meta = {FLAG: "", OPTIONAL: f"[={option.meta}]"}.get(option.kind, f"={option.meta}")
        short = f"-{option.short}, " if option.short else ""
        left = f"  {short}--{option.name}{meta}"
        lines.append(
            f"{left:<34}{option.text}" if len(left) < 33 else f"{left}\n{'':34}{option.text}"
        )
    lines += [
        "",
        "IMAGE is NAME[:TAG], HOST[:PORT]/NAME[:TAG], NAME@sha256:HEX, oci:DIR[:TAG],",
        "docker-archive:FILE, a .sqfs file or a directory. Options end at the first other word.",
        "Options of docker, podman, apptainer and others that mean the same are taken as well.",
        "The exit status is the command's; 125: udi-run failed, 126: not runnable, 127: not found.",
    ]
    return "\n".join(lines) + "\n"
