"""What all our programs do at their beginning and end: standard streams, messages, exit status."""

import _signal
import os
import sys

from rootless_udi.base.errors import BYTES, OURS, UdiError, disk_hint, plain, remedy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_THREADS = "a limit of processes may be reached (ulimit -u), or clone3 is refused: see `udi doctor`"
TOLD: "list[str]" = []
"""What this process has printed by `tell`. A start that said something is planned again."""
_LINE_MAX = 8000
"""Most characters of a printed line; a name in it may have millions."""


def occupy() -> None:
    """Open /dev/null at each standard descriptor (0, 1, 2) that is closed.

    Otherwise the next file that we open would get that number, and be taken for standard output.
    They are closed on exec, so that the command finds the descriptors closed as they were.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def streams() -> None:
    """Give Python streams to /dev/null where descriptors were closed (cron, daemons)."""
    occupy()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), mode))
    lenient()


def lenient() -> None:
    """Let standard output take any text.

    A file's name is written as its bytes. Other characters that the encoding lacks are written as
    escapes (\\u20ac), which mean the same in JSON.
    """
    from _codecs import register_error

    register_error("udi", _escaped)
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="udi")  # type: ignore[union-attr]


def _escaped(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    out = b""
    for character in error.object[error.start : error.end]:
        if "\udc80" <= character <= "\udcff":
            out += bytes((ord(character) - 0xDC00,))
            continue
        units = character.encode("utf-16-be", "surrogatepass")
        out += b"".join(b"\\u%02x%02x" % (*units[at : at + 2],) for at in range(0, len(units), 2))
    return out, error.end


def guarded(program: str, body: "Callable[[], int]") -> int:
    """Call `body` and return its exit status; print errors that a user can mend, with a hint.

    SIGINT ends the process at once, as it does other programs; there is nothing to clean up.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    try:
        status = body()
    except UdiError as error:
        complain(program, error.message, error.hint)
        status = error.status
    except BrokenPipeError:
        status = OURS
    except KeyboardInterrupt:
        # trio has a handler of its own for SIGINT, which raises this.
        status = 128 + _signal.SIGINT
    except OSError as error:
        call = getattr(error, "call", "")
        about = f" on {error.filename}" if error.filename else ""
        what = f"{call or 'a system call'} failed{about}: {error.strerror}"
        if not call and not about and _adrift():
            what = "the working directory has been removed"
        hint = _refuser(call, error.errno) or remedy(call, error.errno)
        complain(program, what, hint or (disk_hint(error.errno) if about and not call else ""))
        status = OURS
    except RuntimeError as error:
        # `threading` raises this where it can't start a thread, without saying why.
        if "start new thread" not in str(error):
            raise
        complain(program, "starting a thread failed", _THREADS)
        status = OURS
    except MemoryError:
        complain(
            program,
            "there is no memory left for it",
            "see ulimit -v, and the job's limit",
        )
        status = OURS
    return _flushed(program, status)


RANK_VARIABLES = (
    *("SLURM_PROCID", "FLUX_TASK_RANK", "PMIX_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"),
    "PALS_RANKID",
)
"""Variables in which launchers tell a process its rank, for errors; `node.launcher.RANKS` are those
of which a rank without a job's number is known."""


def _speaker(program: str) -> str:
    """Return the program's name as an error begins. In a job of several ranks, which print to one
    terminal, it is followed by rank and node."""
    get = os.environ.get
    rank = next((get(name) for name in RANK_VARIABLES if get(name)), "")
    if not rank or program not in ("udi-run", "shifter"):
        return program
    return f"{program}: rank {rank} on {get('SLURMD_NODENAME') or os.uname().nodename}"


def _refuser(call: str, errno: int | None) -> str:
    """Return the hint that names the setting or the security module; "" where nothing is known."""
    try:
        from rootless_udi.base import refusers

        return refusers.hint(call, errno)
    except (ImportError, OSError):
        # After pivot_root(2) our files may be unreachable.
        return ""


def _adrift() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _flushed(program: str, status: int) -> int:
    """Flush standard output; return `status`, or OURS where that fails."""
    try:
        # None where it was closed when Python began.
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except OSError as error:
        # Otherwise Python tries again when it ends, and prints a message of its own.
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            complain(program, f"writing to standard output failed: {error.strerror}")
        # A pipe whose reader has gone (--explain | head) needs no message.
        return status or OURS


def complain(program: str, message: str, hint: str = "") -> None:
    """Print a message and, in a second line, a hint to standard error, in one write."""
    program = _speaker(program)
    tell(f"{program}: {message}", *([f"{program}: hint: {hint}"] if hint else []))


def tell(*lines: str) -> None:
    """Print lines to standard error, each plain (`errors.plain`) and not too long.

    They are one write(2): ranks share standard error, and their lines must not mix.
    """
    text = "".join(f"{_short(plain(line))}\n" for line in lines)
    TOLD.append(text)
    try:
        os.write(2, text.encode())
    except OSError:
        # Standard error is closed. The exit status still tells of an error.
        pass


def _short(line: str) -> str:
    over = len(line) - _LINE_MAX
    return line if over <= 0 else f"{line[:_LINE_MAX]}... ({over} more characters)"


def say(line: str) -> None:
    """Print a line to standard output, plain but for the bytes of files' names."""
    page(plain(line, keep=BYTES) + "\n")


def page(text: str) -> None:
    """Print a text, plain but for newlines, tabs and the bytes of files' names."""
    print(plain(text, keep=f"\n\t{BYTES}"), end="")


def current(environ: "Mapping[str, str]") -> "list[str]":
    """Return the names of the working directory: $PWD if that is another name of it, and its path.

    $PWD may lead there through links; the path has none. Return "/" if the directory was deleted.
    """
    try:
        real = os.getcwd()
    except OSError:
        return ["/"]
    logical = environ.get("PWD", "")
    try:
        if logical.startswith("/") and logical != real and os.path.samefile(logical, real):
            return [logical, real]
    except OSError:
        # $PWD names a folder that is gone, or that can't be looked at.
        pass
    return [real]


def start_and_parent(pid: int) -> tuple[int, int]:
    """Return a process's start time, in clock ticks since boot, and its parent's process id.

    These are the fields 22 and 4 of /proc/PID/stat (proc(5)). Raises OSError, also for a zombie.
    """
    # /proc may be of another PID namespace, in which this process has another number.
    fields = _fields("self" if pid == os.getpid() else pid)
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(f"process {pid} has ended")
    return int(fields[19]), int(fields[1])


def _fields(name: "int | str") -> list[bytes]:
    fd = os.open(f"/proc/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()
    finally:
        os.close(fd)


_OWN: "dict[int, list[bytes]]" = {}
"""Process id -> `own_fields`, of this process and of those that it was forked from."""


def own_fields() -> list[bytes]:
    """Return the fields of this process's /proc/PID/stat, from the third on, as they were at the
    first call: it is read once. Raises OSError."""
    me = os.getpid()
    if me not in _OWN:
        _OWN[me] = _fields("self")
    return _OWN[me]


def started(pid: int) -> int:
    """Return a process's start time in clock ticks since boot; 0 where there is no such process.

    The kernel uses process ids again. Process id and start time together name one process only.
    """
    try:
        return int(own_fields()[19]) if pid == os.getpid() else start_and_parent(pid)[0]
    except OSError:
        return 0
