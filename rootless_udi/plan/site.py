"""The configuration of site and user as one record, and its form as JSON. Pure."""

from rootless_udi.base.records import Record
from rootless_udi.plan.steps import Env, Squashfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

BUILT_IN = "built-in default"


class MountRow(Record):
    """A mount that every container gets: `source` of the host is bound on `destination`.

    `options` are a volume's. If `required` is false and the source is missing, it is left out.
    `origin` is the file and line that asked for it. `step` is what mounts a squashfs file (option
    "sqfs"), once the file has been looked at.
    """

    source: str
    destination: str
    options: tuple[str, ...] = ()
    required: bool = True
    origin: str = BUILT_IN
    step: Squashfs | None = None


DEFAULT_MOUNTS = (
    # The host's /proc: a new one needs a PID namespace, in which MPI's transport through shared
    # memory does not work.
    MountRow("/proc", "/proc", ("rec",)),
    MountRow("/sys", "/sys", ("rec",)),
    MountRow("/dev", "/dev", ("rec",)),
    MountRow("/tmp", "/tmp", ("rec",)),
    MountRow("/var/tmp", "/var/tmp", ("rec",), False),
)


class Site(Record):
    """The merged configuration; the defaults work without any file.

    `config.load` replaces `$NAME` in paths by the caller's environment variables; $UID is always
    known. `modules` maps a module's name to what its file says, checked, of which
    `plan.modules.available` makes records. `mpi` maps an MPI profile's name to its table
    (`mpi_inject.mpi.profiles.from_dict`). `origins` are pairs of a key and the "FILE:LINE" that
    gave it; other values are built in.
    """

    name: str = ""
    """The machine's name, as `shifterimg images` prints it."""
    store: str = ""
    """The user's own image store; empty: the default, see `rootless_udi.store.find`."""
    site_stores: tuple[str, ...] = ()
    stripes: int = 8
    owner: int = 0
    """The uid that owns the site's files, by stat(2); no file can set this."""
    registry: str = "docker.io"
    mirrors: tuple[tuple[str, tuple[str, ...]], ...] = ()
    insecure: tuple[str, ...] = ()
    """Registries to be asked over plain HTTP."""
    trusted: tuple[str, ...] = ()
    """Registries and mirrors whose squashfs files for an image are used unsigned (`udi push`)."""
    gateway: str = ""
    """The image gateway's address: "unix:/PATH" or a URL; empty: there is none."""
    gateway_munge: str = ""
    """The socket of the munged that the gateway's clients ask; empty: munge's usual one."""
    gateway_starts: str = ""
    """Where each start sends a datagram, to be counted: "unix:/PATH" or "ADDRESS:PORT"."""
    gateway_starts_user: bool = True
    """Whether the datagram says who starts."""
    pull: str = "missing"
    """"missing", "lazy", "never" or "always"."""
    verify: str = "remote"
    """"always", "remote" or "never": which images' bytes are checked as they are read."""
    policy: str = ""
    """The file that says which images may be pulled and who must have signed them; empty: any."""
    timeout: int = 60
    """Seconds that a part of an image that is elsewhere may take to come."""
    compression: str = "zstd"
    compression_level: int = 3
    mounts: tuple[MountRow, ...] = DEFAULT_MOUNTS
    propagation: str = "private"
    """"private" or "slave": whether mounts that the host makes later appear inside (autofs)."""
    environment: tuple[Env, ...] = ()
    default_modules: tuple[str, ...] = ()
    if TYPE_CHECKING:
        modules: Mapping[str, Any] = {}
        mpi: Mapping[str, Any] = {}
    else:
        modules: dict = {}
        mpi: dict = {}
    cache_paths: tuple[str, ...] = ()
    """Where perNodeCache files are made; empty: in the volume's own source."""
    cache_method: str = "tmpfs"
    cache_limit: int = 0
    """Most bytes of a perNodeCache; 0: only memory or the file system limits it."""
    cdi_spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    """Where CDI specifications lie; a later directory wins over an earlier one."""
    cwd: bool = True
    """Whether the caller's folder is mounted at its own path: see `rootless_udi.plan.folder`."""
    home: bool = False
    """Whether the caller's home directory is mounted at its own path."""
    keep: int = 0
    """Seconds for which a container waits for the next start: see `rootless_udi.node.kept`."""
    etc: tuple[tuple[str, str], ...] = (
        ("hosts", "/etc/hosts"),
        ("resolv.conf", "/etc/resolv.conf"),
    )
    """(name below the container's /etc, file of the host)."""
    server: str = "auto"
    """Who serves the image: "auto" or a name of `rootless_udi.fuse.choice.NAMES`."""
    squashfuse: str = ""
    """Path of squashfuse_ll; empty: searched for."""
    server_options: tuple[str, ...] = ()
    state_directories: tuple[str, ...] = ()
    """Further places for a node's records: see `rootless_udi.node.places`."""
    origins: tuple[tuple[str, str], ...] = ()

    def origin(self, key: str) -> str:
        """Return the "FILE:LINE" that gave a key ("cache.method"), or "built-in default"."""
        return dict(self.origins).get(key, BUILT_IN)


def to_flat(site: Site) -> "dict[str, Any]":
    """Return a Site as lists and strings for JSON; `from_flat` makes a Site of them."""
    flat = dict(zip(site.FIELDS, site.values(), strict=True))
    flat["mounts"] = [row.values()[:5] for row in site.mounts]
    flat["environment"] = [one.values() for one in site.environment]
    return flat


def from_flat(flat: "dict[str, Any]") -> Site:
    """Return the Site of `to_flat`'s value, in which JSON has made lists of tuples."""
    values = {name: _tuples(value) for name, value in flat.items()}
    values["mounts"] = tuple(MountRow(*row) for row in values["mounts"])
    values["environment"] = tuple(Env(*one) for one in values["environment"])
    return Site(**values)


def _tuples(value: "Any") -> "Any":
    return tuple(_tuples(one) for one in value) if isinstance(value, list | tuple) else value
