"""Remove what dead containers have left in a state directory.

A container's helper removes its record. But a batch system that kills all of a job's processes at
its end (Grid Engine by the job's group, Slurm by the step's cgroup) may kill the helper first: a
record or its lock remains then. A helper of a later container or `udi ps` removes it; no start
waits for that.
"""

import fcntl
import os

from rootless_udi.base.errors import UdiError
from rootless_udi.node.record import FORMAT, PAIR, living, read_record

_ENDINGS = (".new", ".lock", f".{FORMAT}")


def sweep(directory: int, ended: tuple[int, int] = (0, 0)) -> list[str]:
    """Remove dead records, unfinished ones and their locks; return the containers' names.

    Then the pairs of user namespaces that nobody uses: see `pair.sweep`, also for `ended`.

    `directory` is a descriptor of the state directory. A container is dead when nobody holds its
    lock and no member of its record lives; a helper that is still there finds nothing more to do.
    What another version has put there stays, with the lock beside it.
    """
    names, others, pairs = set(), set(), []
    for file in os.listdir(directory):
        if file.endswith(PAIR):
            pairs.append(file)
            continue
        ending = next((one for one in _ENDINGS if file.endswith(one)), "")
        names.add(file.removesuffix(ending))
        if not ending:
            others |= {file, file.rpartition(".")[0]}
    found = sorted(name for name in names - others if _dead(directory, name))
    for file in pairs:
        # Only here, since a container outside any launcher has none.
        from rootless_udi.node import pair

        pair.sweep(directory, file, ended)
    return found


def remove_files(directory: int, name: str) -> None:
    """Remove the record of the container `name`, with what belongs to it. Raises OSError."""
    for ending in _ENDINGS:
        try:
            os.unlink(name + ending, dir_fd=directory)
        except FileNotFoundError:
            pass


def _dead(directory: int, name: str) -> bool:
    """Remove the files of `name` under its lock, where it is dead; tell whether it was."""
    try:
        lock = os.open(f"{name}.lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        lock = -1
    try:
        if lock >= 0:
            # This fails if a builder has the lock, or a helper that is removing the files itself.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The name may be another builder's lock by now. A rank that waits for a lock whose file
            # has been removed starts again.
            here = os.stat(f"{name}.lock", dir_fd=directory, follow_symlinks=False)
            if not os.path.samestat(here, os.fstat(lock)):
                return False
        record, fd = read_record(directory, name)
        if fd >= 0:
            os.close(fd)
        if record is not None and living(record):
            return False
        if record is None and lock < 0:
            # It is new: a run that does not share its container writes its record without a lock.
            return False
        remove_files(directory, name)
        return True
    except (OSError, UdiError):
        return False
    finally:
        if lock >= 0:
            os.close(lock)
