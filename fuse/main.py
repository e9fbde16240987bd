"""Serve an image by hand: `python3 -m rootless_udi.fuse.main [OPTIONS] IMAGE /dev/fd/N`.

Descriptor N is /dev/fuse, which the caller has opened and mounted; fuse-python takes a folder to
mount on in its place. udi-run does not use this command for its own server: it calls
`raw_transport.serve` in a process that it has anyway. The command is for the other transports, for
experiments and for tests.

    --transport=raw|pyfuse3|fuse-python   which module speaks to the kernel (default: raw)
    --cache=BYTES                         most bytes of decompressed data to cache
    --offset=BYTES                        where in the file the image begins
    --threads=N                           further threads that decompress
    --ready-fd=N                          a descriptor: a byte is written to it once requests will
                                          be answered
    --counts=FILE                         write the number of messages by operation to FILE, at the
                                          end and at each SIGUSR1
    --verify=always                       compare each MiB with the list of the image's windows
    --trace=FILE                          write what was read to FILE, for `udi optimize`
"""

import os
import sys

from rootless_udi.base.errors import OURS, UdiError
from rootless_udi.base.process import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

USAGE = (__doc__ or "").partition("\n")[0]
OPTIONS = ("transport", "cache", "offset", "threads", "ready-fd", "counts", "trace", "verify")


def main(argv: "list[str] | None" = None) -> int:
    """Run the command; return its exit status."""
    try:
        options, image, where = _parse(sys.argv[1:] if argv is None else argv)
        _run(options, image, where)
    except UdiError as error:
        complain("udi-fuse", error.message, error.hint)
        return error.status
    except OSError as error:
        complain("udi-fuse", str(error))
        return OURS
    return 0


def _parse(argv: list[str]) -> tuple[dict[str, str], str, str]:
    options: dict[str, str] = {}
    words = []
    for word in argv:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and equals and name in OPTIONS:
            options[name] = value
        elif word.startswith("-"):
            raise UdiError(f"reading the options failed on {word}: unknown", USAGE)
        else:
            words.append(word)
    if len(words) != 2:
        raise UdiError("serving failed: an image and a mount are needed", USAGE)
    return options, words[0], words[1]


def _name_process() -> None:
    """Call this process udi-image in ps(1), as the server of a launch is called."""
    try:
        fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # /proc may be hidden, and the name is for people only
    try:
        os.write(fd, b"udi-image")
    finally:
        os.close(fd)


def _number(options: dict[str, str], name: str) -> "int | None":
    value = options.get(name)
    if value is None:
        return None
    if not value.isdecimal():
        raise UdiError(f"reading the options failed on --{name}={value}: not a number", USAGE)
    return int(value)


def _run(options: dict[str, str], image: str, where: str) -> None:
    transport = options.get("transport", "raw")
    chosen: dict[str, Any] = {
        "threads": _number(options, "threads"),
        "ready_fd": _number(options, "ready-fd"),
        "base": _number(options, "offset") or 0,
    }
    cache = _number(options, "cache")
    if cache is not None:
        chosen["cache_bytes"] = cache
    if "counts" in options and transport != "raw":
        raise UdiError(f"counting failed on {transport}: only the raw transport counts", USAGE)
    if options.get("verify", "always") != "always" or ("verify" in options and transport != "raw"):
        raise UdiError(
            f"checking failed on --verify={options['verify']}: only always, by raw", USAGE
        )
    if "verify" in options:
        from rootless_udi.fuse.checkedfile import opener

        chosen["opener"] = opener(True)
    serve = _transport(transport)
    _name_process()
    tracer = None
    if "trace" in options:
        from rootless_udi.fuse.profile import Tracer

        tracer = chosen["filesystem"] = Tracer()
    counts: dict[int, int] = {}
    if "counts" in options:
        chosen["counts"] = counts
        _save_on_signal(options["counts"], counts)
    prefix, _, number = where.rpartition("/")
    if transport != "fuse-python" and (prefix != "/dev/fd" or not number.isdecimal()):
        raise UdiError(f"serving failed on {where}: not of the form /dev/fd/N", USAGE)
    try:
        serve(image, where if transport == "fuse-python" else int(number), **chosen)
    finally:
        if tracer is not None:
            tracer.save(options["trace"])
        if "counts" in options:
            _save_counts(options["counts"], counts)


def _transport(name: str) -> "Callable[..., None]":
    module = _TRANSPORTS.get(name)
    if module is None:
        raise UdiError(f"serving failed: there is no transport {name}", USAGE)
    try:
        serve: Callable[..., None] = __import__(module, fromlist=["serve"]).serve
    except ModuleNotFoundError as error:
        raise UdiError(
            f"serving through {name} failed: the module {error.name} is missing",
            f"pip install rootless_udi[{'fuse2' if name == 'fuse-python' else 'fuse'}]",
        ) from None
    return serve


_TRANSPORTS = {
    "raw": "rootless_udi.fuse.raw_transport",
    "pyfuse3": "rootless_udi.fuse.pyfuse3_transport",
    "fuse-python": "rootless_udi.fuse.fusepython_transport",
}


def _save_counts(path: str, counts: dict[int, int]) -> None:
    from rootless_udi.fuse.protocol import NAMES

    text = "".join(f"{NAMES.get(op, op)} {n}\n" for op, n in sorted(counts.items()))
    part = f"{path}.{os.urandom(8).hex()}.part"
    with open(part, "x") as file:
        file.write(text)
    os.replace(part, path)


def _save_on_signal(path: str, counts: dict[int, int]) -> None:
    import signal

    signal.signal(signal.SIGUSR1, lambda _number, _frame: _save_counts(path, counts))


if __name__ == "__main__":
    # What it writes (--counts, --trace) is the caller's alone.
    os.umask(0o077)
    sys.exit(main())
