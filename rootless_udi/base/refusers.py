"""What refuses a system call on this node, asked after a failure: a setting or a security module.

Each has a name under which an administrator finds it. The texts are those of `udi-run`'s hints and
of `udi doctor`'s remedies.
"""

from errno import EACCES, ENOSPC, EPERM

from rootless_udi.base.records import Record


class Setting(Record):
    """A setting of the kernel that refuses what a launch does: `name` is sysctl's, `bad` the value
    that does it; `means` says what that means. `answers` are pairs (call, errno) by which it shows;
    `remedy` is for the administrator."""

    name: str
    bad: str
    means: str
    answers: "tuple[tuple[str, int], ...]"
    remedy: str


APPARMOR = "kernel.apparmor_restrict_unprivileged_userns"
_NAMESPACE = "`allow DOMAIN self:user_namespace create;`"
_CAPABILITY = "`allow DOMAIN self:cap_userns sys_admin;`"
_MODULES = {
    # What a security module refuses: the rules that would allow it, SELinux' and AppArmor's.
    ("unshare", EACCES): (_NAMESPACE, "`userns,`"),
    ("unshare", EPERM): (_CAPABILITY, "`capability sys_admin,`"),
    ("setgroups", EACCES): ("", ""),
    ("setgroups", EPERM): ("", ""),
    ("uid_map", EACCES): ("", ""),
    ("uid_map", EPERM): ("", ""),
    # By the type of the file system, the mount point, or the overlay's own work directory.
    ("mount", EACCES): ("of the class filesystem, dir or cap_userns", "`mount,`"),
    ("mount", EPERM): (_CAPABILITY, "`capability sys_admin,`"),
}
DEVICE = "/dev/fuse"
"""Stands for the call that opens it, in `hint`; no setting refuses it."""
_FILES = {(DEVICE, EACCES): ("of the class chr_file", f"`{DEVICE} rw,`")}
_FREE = "unconfined"
"""Such domains lack none: something else refused it (a seccomp filter, a chroot)."""
_CONTAINERS = ("container", "docker", "cri-containerd", "lxc", "spc_t")
CONTAINER = (
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt label=disable"
)
"""Options of docker run and podman run."""
SETTINGS = (
    Setting(
        "user.max_user_namespaces",
        "0",
        "user namespaces are switched off",
        (("unshare", ENOSPC),),
        "the administrator: sysctl -w user.max_user_namespaces=15000 (and in /etc/sysctl.d)",
    ),
    Setting(
        "kernel.unprivileged_userns_clone",
        "0",
        "ordinary users may make none",
        (("unshare", EPERM),),
        "the administrator: sysctl -w kernel.unprivileged_userns_clone=1 (and in /etc/sysctl.d)",
    ),
    Setting(
        APPARMOR,
        "1",
        "only programs with an AppArmor profile may use one (Ubuntu 23.10 and later)",
        tuple(_MODULES),
        "the administrator: install contrib/apparmor/udi-run as /etc/apparmor.d/udi-run (it is for "
        f"the paths in it, none of them in a home directory), or sysctl -w {APPARMOR}=0",
    ),
)


def value(name: str) -> str:
    """Return a setting's value, "" where the kernel does not have it."""
    return _read("/proc/sys/" + name.replace(".", "/"))


def domain() -> str:
    """Return this process' type where SELinux is in force ("user_t"), else ""."""
    if _read("/sys/fs/selinux/enforce") != "1":
        return ""
    words = _read("/proc/self/attr/current").split(":")
    return words[2] if len(words) > 2 else "?"


def profile() -> str:
    """Return the AppArmor profile that confines this process, else ""."""
    name, _, mode = label().rpartition(" ")
    return name if mode == "(enforce)" else ""


def label() -> str:
    """Return this process' AppArmor profile with its mode ("udi-run (unconfined)"), "unconfined"
    without one."""
    # The first, where the kernel has it, also with another module beside AppArmor.
    return _read("/proc/self/attr/apparmor/current") or _read("/proc/self/attr/current")


def hint(call: str, errno: int | None) -> str:
    """Return what refuses `call` here and the remedy, "" where nothing is known."""
    answer = (call, errno or 0)
    for one in SETTINGS:
        if answer in one.answers and value(one.name) == one.bad:
            return f"{one.name} is {one.bad}: {one.means}; {one.remedy}"
    rules = {**_MODULES, **_FILES}.get(answer)
    return _module(*rules) if rules else ""


def _module(for_selinux: str, for_apparmor: str) -> str:
    kind, name = domain(), profile()
    if kind and not kind.startswith(_FREE):
        module, who, rule = "SELinux", f"the domain {kind}", for_selinux.replace("DOMAIN", kind)
        log = "`ausearch -m AVC -ts recent`"
    elif name:
        module, who, rule = "AppArmor", f"the profile {name}", for_apparmor
        log = "the kernel's log"
    else:
        return ""
    remedy = f"the administrator: {log} shows what was denied"
    if (kind or name).startswith(_CONTAINERS):
        remedy = f"start the container with {CONTAINER}"
    rule = rule and f" ({rule})"
    return f"{module} is in force: {who} seems to lack a rule{rule}; {remedy}"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip(" \n\0")
    except OSError:
        return ""
