"""The user's containers on this node, from the state directories and /proc; and one by its name.

Looking at them also removes records of dead containers, which are left where a helper was killed.
"""

import os
import pwd
from time import time

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain
from rootless_udi.base.records import Record
from rootless_udi.node import places
from rootless_udi.node.record import NodeRecord, file_of, living, member, read_record
from rootless_udi.node.sweep import sweep

_DIGITS = 12
"""How many digits of a name are shown: enough to tell a node's containers apart."""


class Container(Record):
    """A living container.

    `name` and `directory` say where its record is; `members` are process ids, `age` is in seconds,
    `memory` in KiB is that of its image server (0: it has none), `trouble` says how the server has
    died. `keep` is for how many seconds it waits for the next start (0: it is not kept), `waits`
    for how many it does so now, None while it has members; `pin` is the process that keeps it.
    """

    name: str
    image: str
    digest: str
    job: str
    members: tuple[int, ...]
    age: int
    server: str
    memory: int
    directory: str
    trouble: str = ""
    keep: int = 0
    waits: int | None = None
    pin: tuple[int, int] = (0, 0)


def short(name: str) -> str:
    """Return a container's name as `udi ps` shows it: its first digits, or alone-PID."""
    if name.startswith("alone-"):
        return "-".join(name.split("-")[:2])
    kind, dash, digits = name.rpartition("-")
    return f"{kind}{dash}{digits[:_DIGITS]}"


def containers(environ: dict[str, str]) -> list[Container]:
    """Return this user's living containers on this node, oldest first."""
    found = []
    paths = (*places.directories(environ, os.getuid()), *places.further(environ))
    for text in places.passed_over(paths):
        complain("udi", text, "have it removed")
    for path in paths:
        _, directory = places.state([path], make=False)
        if directory < 0:
            continue
        try:
            sweep(directory)
            for file in os.listdir(directory):
                name = file.removesuffix(file_of(""))
                if name != file:
                    one = _container(path, directory, name)
                    if one is not None:
                        found.append(one)
        finally:
            os.close(directory)
    return sorted(found, key=lambda c: -c.age)


def _container(path: str, directory: int, name: str) -> Container | None:
    try:
        record, fd = read_record(directory, name)
    except UdiError:
        # Nobody's record: ours are for their owner to read.
        return None
    if record is None:
        return None
    since = os.fstat(fd).st_mtime
    os.close(fd)
    members = living(record)
    pin = member(record.get("pin").encode()) or (0, 0)
    keep = _number(record.get("keep")) if pin[0] in members else 0
    pid = _number(record.get("server").partition(" ")[0])
    if not members:
        return None
    members = [one for one in members if one != pin[0]]
    return Container(
        name=name,
        image=record.get("image"),
        digest=record.get("digest"),
        job=record.get("job"),
        members=tuple(members),
        age=max(0, int(time()) - _number(record.get("started"))),
        server=record.get("rung"),
        memory=_resident(pid) if pid else 0,
        directory=path,
        trouble=record.lost(),
        keep=keep,
        waits=max(0, int(time() - since)) if keep and not members else None,
        pin=pin if keep else (0, 0),
    )


def named(word: str, environ: dict[str, str]) -> Container:
    """Return the container that `word` means: what `udi ps` shows, or the beginning of a name.

    It may be the name of --share=NAME as well, or the id of a process in the container. Raises
    UdiError where there is none, and where there are several.
    """
    found = containers(environ)
    exact = [
        one for one in found if word in (one.name, short(one.name)) or one.job == f"name {word}"
    ]
    fits = exact or [one for one in found if word and one.name.startswith(word)]
    if not exact and word.isdecimal():
        fits += [one for one in found if _is_in(int(word), one) and one not in fits]
    if len(fits) == 1:
        return fits[0]
    if fits:
        several = ", ".join(f"{short(one.name)} ({one.image})" for one in fits)
        raise UdiError(f"{word} may mean several containers: {several}", "name one as shown here")
    raise _unknown(word)


def opened(container: Container) -> tuple[NodeRecord, int]:
    """Return the record of a container and its descriptor, for `record.join`.

    Raises UdiError where the container has ended.
    """
    _, directory = places.state([container.directory], make=False)
    record, fd = read_record(directory, container.name) if directory >= 0 else (None, -1)
    if directory >= 0:
        os.close(directory)
    if record is None:
        raise ended(container)
    return record, fd


def ended(container: Container) -> UdiError:
    """Return the error for a container that was there a moment ago."""
    return UdiError(
        f"the container {short(container.name)} has ended, or none of its processes can be entered",
        "`udi ps` lists those that live",
    )


def _is_in(pid: int, container: Container) -> bool:
    """Tell whether a process is in the container: a member, or what one of them has started."""
    if pid in container.members:
        return True
    spaces = set()
    for one in (pid, *container.members):
        try:
            spaces.add(os.stat(f"/proc/{one}/ns/mnt").st_ino)
        except OSError:
            if one == pid:
                return False
    return len(spaces) == 1 and bool(container.members)


def _unknown(word: str) -> UdiError:
    try:
        owner = os.stat(f"/proc/{int(word)}").st_uid
    except (OSError, ValueError):
        owner = os.getuid()
    if owner != os.getuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        return UdiError(
            f"process {word} is user {name}'s: a container is entered by its owner alone",
            "`udi ps` lists yours",
        )
    return UdiError(
        f"no container of yours on this node is called {word}",
        "`udi ps` lists them; a new one is: udi run IMAGE COMMAND",
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _resident(pid: int) -> int:
    """Return the resident memory of a process in KiB, from /proc/PID/status (VmRSS)."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0
