"""Serve an image by hand: `python3 -m rootless_udi.fuse.main [OPTIONS] IMAGE /dev/fd/N`.

N is /dev/fuse, opened and mounted by the caller; fuse-python takes a folder to mount on instead. A
launch of udi-run calls `raw.serve` in a process that it has anyway; this command is for the other
transports, for trying things and for the tests.

    --transport=raw|pyfuse3|fuse-python   who speaks to the kernel (raw)
    --cache=BYTES                         decompressed data kept
    --threads=N                           threads that help with large reads
    --ready-fd=N                          gets a byte once requests will be answered
    --counts=FILE                         gets the number of messages by operation, at the end
    --trace=FILE                          gets what was read, for `udi optimize`
"""

import os
import sys

from rootless_udi.errors import OURS, UdiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

USAGE = (__doc__ or "").partition("\n")[0]
OPTIONS = ("transport", "cache", "threads", "ready-fd", "counts", "trace")


def main(argv: "list[str] | None" = None) -> int:
    """Run the command; return its exit status."""
    try:
        options, image, where = _parse(sys.argv[1:] if argv is None else argv)
        _run(options, image, where)
    except UdiError as error:
        sys.stderr.write(f"udi-fuse: {error.message}\n" + (error.hint and f"  {error.hint}\n"))
        return error.status
    except OSError as error:
        sys.stderr.write(f"udi-fuse: {error}\n")
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
    }
    cache = _number(options, "cache")
    if cache is not None:
        chosen["cache_bytes"] = cache
    serve = _transport(transport)
    tracer = None
    if "trace" in options:
        from rootless_udi.fuse.profile import Tracer

        tracer = chosen["filesystem"] = Tracer()
    counts: dict[int, int] = {}
    if "counts" in options:
        if transport != "raw":
            raise UdiError(f"counting failed on {transport}: only the raw transport counts", USAGE)
        chosen["counts"] = counts
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
    if name == "raw":
        from rootless_udi.fuse.raw import serve
    elif name == "pyfuse3":
        from rootless_udi.fuse.pyfuse3_transport import serve
    elif name == "fuse-python":
        from rootless_udi.fuse.fusepython_transport import serve
    else:
        raise UdiError(f"serving failed: there is no transport {name}", USAGE)
    return serve


def _save_counts(path: str, counts: dict[int, int]) -> None:
    from rootless_udi.fuse.protocol import NAMES

    text = "".join(f"{NAMES.get(op, op)} {n}\n" for op, n in sorted(counts.items()))
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    # site-packages' .pth files cost more than all of this: the caller may pass -IS, and then names
    # this file; the package is beside the folder it is in
    os.umask(0o077)
    sys.exit(main())
