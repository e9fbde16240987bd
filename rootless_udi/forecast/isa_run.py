"""Run a command in its image, here, as udi-run does: as it is, or under qemu as another CPU."""

import os

from rootless_udi.base.records import Record
from rootless_udi.forecast import imagetree, isa_shim, room
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.isa_process import ENDED, REFUSED, Outcome, WatchedRun
from rootless_udi.plan import volumes
from rootless_udi.plan.options import FLAG, LIST, OPTIONS, Request

_INSIDE = "/.udi-check"
_QEMU, _PREFIX = f"{_INSIDE}/qemu", f"{_INSIDE}/root"
_KEPT_OPTIONS = (
    *("volume", "no-cwd", "home", "writable", "env", "env-file", "clearenv", "workdir"),
    *("module", "fuse", "layer", "platform"),
)
"""What of udi-run's options counts here too. MPI and GPUs are another machine's."""
_LINKERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1")
"""The dynamic linkers of x86-64, by the names in programs."""
_LINKER = 4 << 20
_WITH_MPI = ("--mpi", "--env=OMPI_MCA_ess_singleton_isolated=1")
"""This machine's MPI, and no daemon for a rank that no launcher has started: the image need not
have Open MPI's."""
_SLOWER = 20
"""How much slower than a processor qemu may be; 5 to 15 was measured."""


class Emulator(Record):
    """A static qemu-user, by its path, and what its option -cpu is to be."""

    qemu: str
    cpu: str


class Trial(Record):
    """What is run: `words`, the command; `static`, its path in the image where it is a static
    program, which qemu must be put before; the request, image and time of `asked`. `mpi` says
    that the site's MPI goes in.
    """

    asked: Asked
    words: tuple[str, ...]
    static: str = ""
    mpi: bool = False


def run(
    trial: Trial,
    emulator: Emulator | None = None,
    writable: bool = False,
    log: bool = False,
    hide: str = "",
    mpi: bool | None = None,
) -> Outcome:
    """Run a command; under `emulator`, if one is given, with all programs that it starts.

    `log`: have qemu say which instruction it refuses; that costs time. `hide` is a path of the
    image over which an empty folder is mounted; `mpi`: with this machine's MPI, by default where
    `has_mpi` says so. Raises OSError where no temporary folder can be
    made, UdiError and needs.Unreadable where the image can't be read.
    """
    asked = trial.asked
    with room.made() as place:
        words = _options(asked.request.replace(writable=writable or asked.request.writable))
        words += _WITH_MPI if (has_mpi(trial) if mpi is None else mpi) else ()
        command = list(trial.words)
        environment, logs = [], ""
        if emulator:
            words += _emulating(asked, emulator, place)
        if emulator and trial.static:
            before = [_QEMU, "-cpu", emulator.cpu, "-L", _PREFIX, "-0", command[0], trial.static]
            command[:1] = before
        if emulator and log:
            logs = f"{place.path}/logs"
            os.mkdir(logs)
            environment = ["--env=QEMU_LOG=in_asm", f"--env=QEMU_LOG_FILENAME={_INSIDE}/logs/%d"]
            words += [f"--volume={_shown(place, 'logs')}:{_INSIDE}/logs"]
        if hide:
            os.mkdir(f"{place.path}/empty")
            words += [f"--volume={_shown(place, 'empty')}:{volumes.quote(hide)}:ro"]
        words += ["--share=off", "--pull=never", *environment, f"--image={asked.image}", "--"]
        done = WatchedRun(words, command, logs, asked.limit, place).outcome(writable)
        if done.state == REFUSED and "/bin/sh" in done.said:
            done = WatchedRun(words, command, logs, asked.limit, place, False).outcome(False)
        return done


def native(trial: Trial, writable: bool = False) -> Outcome:
    """Run a command as it is, once for all checks. Raises as `run`.

    Where it fails and will have the site's MPI there, it is tried with this machine's.
    """
    done = _once(trial, writable, mpi=False)
    if trial.mpi and done.state == ENDED and not (done.fine or done.illegal):
        with_mpi = _once(trial, writable, mpi=True)
        done = with_mpi if with_mpi.fine else done
    return done


def _once(trial: Trial, writable: bool, mpi: bool) -> Outcome:
    key = _key(writable, mpi)
    memo = trial.asked.memo
    if key not in memo:
        memo[key] = run(trial, writable=writable, mpi=mpi)
    done = memo[key]
    assert isinstance(done, Outcome)
    return done


def _key(writable: bool, mpi: bool) -> str:
    return f"run{', writable' if writable else ''}{', with MPI' if mpi else ''}"


def has_mpi(trial: Trial) -> bool:
    """Tell whether a command ends well with this machine's MPI alone; known after `native`."""
    tried = [trial.asked.memo.get(_key(writable, True)) for writable in (False, True)]
    return trial.mpi and any(isinstance(one, Outcome) and one.fine for one in tried)


def wants_writable(trial: Trial) -> bool:
    """Tell whether a command ends well only if it may write into the image. Raises as `run`."""
    first = native(trial)
    if trial.asked.request.writable or first.fine or first.state != ENDED or first.illegal:
        return False
    return native(trial, writable=True).fine


def emulated(trial: Trial, emulator: Emulator) -> Outcome:
    """Run a command under qemu, once for each CPU; a second time to see what was refused.

    The root is writable where `wants_writable` says so, and for a command that ends well as it is
    there is more time.
    """
    memo = trial.asked.memo
    writable = wants_writable(trial)
    key = f"run as {emulator.cpu}{', with MPI' if has_mpi(trial) else ''}"
    if key not in memo:
        before = native(trial, writable)
        if before.fine:
            limit = trial.asked.limit + _SLOWER * before.seconds
            trial = trial.replace(asked=trial.asked.replace(limit=limit))
        done = run(trial, emulator, writable)
        if done.illegal:
            again = run(trial, emulator, writable, log=True)
            done = again if again.illegal else done
        memo[key] = done
    done = memo[key]
    assert isinstance(done, Outcome)
    return done


def _options(request: Request) -> list[str]:
    """Return the words for udi-run that make a request of the same kind."""
    words = []
    for option in OPTIONS:
        value = getattr(request, option.field)
        if option.name not in _KEPT_OPTIONS or (not value and value != ""):
            continue
        if option.kind == FLAG:
            words.append(f"--{option.name}")
        elif option.kind == LIST:
            words += [f"--{option.name}={one}" for one in value]
        else:
            words.append(f"--{option.name}={value}" if value else f"--{option.name}")
    return words


def _shown(place: room.Room, name: str) -> str:
    """Return what --volume takes for a file or folder of the room."""
    return volumes.quote(f"{place.inside}/{name}")


def _emulating(asked: Asked, emulator: Emulator, place: room.Room) -> list[str]:
    """Return the options that put qemu before all dynamic programs of the image."""
    words = [
        f"--volume={emulator.qemu}:{_QEMU}:ro",
        f"--volume={_shown(place, 'root')}:{_PREFIX}:ro",
    ]
    folder = place.path
    os.mkdir(f"{folder}/root")
    with imagetree.opened(asked.path, asked.offset) as tree:
        for linker in _LINKERS:
            entry = imagetree.find(tree, linker)
            content = tree.content(entry.path) if entry else None
            if content is None:
                continue
            os.makedirs(os.path.dirname(f"{folder}/root{linker}"), exist_ok=True)
            name = linker.rpartition("/")[2]
            shim = f"{folder}/{name}"
            made = isa_shim.made(_QEMU, _PREFIX, f"{_PREFIX}{linker}", emulator.cpu)
            for path, data in ((f"{folder}/root{linker}", content.read(0, _LINKER)), (shim, made)):
                with open(path, "wb") as file:
                    file.write(data)
                os.chmod(path, 0o755)
            words.append(f"--volume={_shown(place, name)}:{linker}:ro")
    return words
