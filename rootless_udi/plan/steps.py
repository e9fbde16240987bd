"""The steps that make a container's root file system, as data. Pure.

The planner makes them (`plan.planner`), the executor does them (`launch.execute`).

Every step has `target`, an absolute path inside the container, and `reason`: which default, option,
file or module asked for it and why, as `--explain` prints it.
"""

from rootless_udi.base.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.plan.image import Root

HOOK_SECONDS = 30.0
"""How long a hook may take, unless its module says otherwise."""


class Mount(Record):
    """Mount `source` on `target`, in the words of mount(8); a bind where `fstype` is empty.

    `source` is a path on the host. `options` are mount(8)'s: for a bind "rec", "ro", "rw",
    "nosuid", "nodev", "noexec", "private", "slave"; for a file system also its own ("size=1g"). If
    `required` is false and the source is missing, the step is left out. `over`: the image is known
    to have `target` (a library that another replaces), so that no layer is needed for it.
    `only_empty`: the step is left out if the image has anything at `target` but an empty directory,
    or if `target` can't be made.
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
    """A symbolic link at `target` that points to `to`; in private memory, never in the image."""

    target: str
    to: str
    reason: str = ""


class Directory(Record):
    """An empty directory at `target`, made in private memory, never in the image."""

    target: str
    mode: int = 0o755
    reason: str = ""


class Squashfs(Record):
    """A squashfs file as data: an image server mounts it at `target`, read-only.

    `root` is how; `verify` is how the server checks what it reads, as in `plan.start.Start`.
    `directory` is where the file is unpacked in the caller's store, or will be, for a host on which
    no server can serve it; "" else.
    """

    target: str
    root: "Root"
    verify: str = ""
    reason: str = ""
    directory: str = ""


Step = Mount | File | Symlink | Directory | Squashfs


class Env(Record):
    """One operation on the environment.

    `op` is "set"; "append" or "prepend", which join with ":" and just set a variable that is unset
    or empty; "unset"; or "clear", which removes all variables.
    """

    op: str
    name: str = ""
    value: str = ""
    reason: str = ""


class Injection(Record):
    """What one part (a module, the host's MPI, its GPUs) adds to the container.

    `notes` are for --explain, `warnings` are printed at each start. `together` are targets that
    work only if all are visible, so that no volume may hide one of them. `accounts`
    are NAME:UID:GID.
    """

    steps: tuple[Step, ...] = ()
    environment: tuple[Env, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()


class Hook(Record):
    """A command that runs inside the container, as the user, before the user's own command."""

    argv: tuple[str, ...]
    seconds: float = HOOK_SECONDS
    reason: str = ""
