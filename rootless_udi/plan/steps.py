"""What can be done to a root file system, as data: the planner writes it, the executor does it.

Every step has `target`, an absolute path inside the container, and `reason`: which default, option,
file or module asked for it and why, as `--explain` prints it.
"""

from rootless_udi.base.records import Record

HOOK_SECONDS = 30.0


class Mount(Record):
    """mount(8)'s words: `source` on `target`, a bind where `fstype` is empty.

    `source` is a path on the host. `options` are mount(8) options: bind flags ("rec", "ro", "rw",
    "nosuid", "nodev", "noexec", "private", "slave") or, for a file system, its own ("size=1g").
    With `required` false, a missing source leaves the step out. `over` says that the image is known
    to have `target` (a library that another replaces), so that no overlay is needed for it. With
    `only_empty` the step is left out where the image has anything at `target` but an empty
    directory, or where `target` can't be made.
    """

    target: str
    source: str
    fstype: str = ""
    options: tuple[str, ...] = ()
    required: bool = True
    reason: str = ""
    over: bool = False
    only_empty: bool = False


class File(Record):
    """A generated file: `content` is written to private memory and bound over `target`."""

    target: str
    content: str
    mode: int = 0o644
    reason: str = ""


class Symlink(Record):
    """A symbolic link at `target` pointing `to`; made in private memory, never in the image."""

    target: str
    to: str
    reason: str = ""


class Directory(Record):
    """An empty directory at `target`, made in private memory, never in the image."""

    target: str
    mode: int = 0o755
    reason: str = ""


Step = Mount | File | Symlink | Directory


class Env(Record):
    """One operation on the environment.

    `op` is "set", "append" or "prepend" (joined with ":", a plain set where the variable is unset
    or empty), "unset", or "clear" (drop all that the caller had).
    """

    op: str
    name: str = ""
    value: str = ""
    reason: str = ""


class Injection(Record):
    """What one part (a module, the host's MPI, its GPUs) wants put into the container.

    `notes` are for --explain; `warnings` are said at every start too. `together` are targets of
    which none may be covered, as by a volume: they work all or not at all.
    """

    steps: tuple[Step, ...] = ()
    environment: tuple[Env, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    together: tuple[str, ...] = ()


class Hook(Record):
    """A command that runs inside the container, as the user, before the user's own command."""

    argv: tuple[str, ...]
    seconds: float = HOOK_SECONDS
    reason: str = ""
