"""Errors: `UdiError` for what a user or the site can mend, exit statuses, hints what to do.

What the kernel refuses stays an `OSError`; for the common ones `remedy` and `disk_hint` have a
hint. Any other exception that reaches the user is a bug, and is shown with its traceback.
"""

from errno import (
    EACCES,
    EDQUOT,
    EFBIG,
    EINVAL,
    EIO,
    EMFILE,
    ENFILE,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    EPERM,
    EROFS,
    ESTALE,
    ETIMEDOUT,
    EUSERS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

OURS = 125
"""Exit status of udi-run when it could not start the command (as env(1) and docker-run(1))."""
NOT_EXECUTABLE = 126
NOT_FOUND = 127
"""Exit statuses for a command that can't be executed, and for one that is not there (env(1))."""


class UdiError(Exception):
    """An error that the user or the site can mend.

    `message` reads "WHAT failed on WHAT: WHY". `hint` says what to do next, and may be empty.
    `status` is the program's exit status.
    """

    def __init__(self, message: str, hint: str = "", status: int = OURS) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its word: "1 image", "2 images"; `many` is a plural that has no -s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def amount(size: int) -> str:
    """Return a number of bytes for people, in powers of 1000: "1.2 GB". Where two are compared
    that may differ by little, the exact numbers are better."""
    for power, unit in ((18, "EB"), (15, "PB"), (12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        factor = 10**power
        # What rounds up to a thousand is one of the next unit.
        if size >= factor - factor // 20000:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


BYTES = "".join(map(chr, range(0xDCA0, 0xDD00)))
"""The characters that os.fsdecode makes of bytes which are no UTF-8, as a file's name may have.
Those for bytes 0x80 to 0x9f are not among them: some terminals obey these bytes."""


def _python(character: str) -> str:
    return repr(character)[1:-1]


def plain(text: str, keep: str = "", spell: "Callable[[str], str]" = _python) -> str:
    """Return `text` so that it is safe to print: unprintable characters are spelled out (\\x1b).

    Texts of a registry, an image or a shared folder may hold characters that a terminal obeys (ESC,
    BEL), newlines with which they could imitate our messages, marks that turn the direction of
    writing, or bytes that are no text. `base.process` passes all that is printed through here.
    `keep` are unprintable characters to leave as they are; `spell` spells one out.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else spell(c) for c in text)


_REMEDIES = {
    ("unshare", EPERM): "user namespaces are refused here; `udi doctor` names the setting",
    ("unshare", EACCES): "a security module refuses it (AppArmor, SELinux?); see `udi doctor`",
    ("unshare", ENOSPC): "the limit user.max_user_namespaces is reached; see `udi doctor`",
    ("unshare", EUSERS): "too many nested user namespaces; start from outside the container",
    ("setns", EPERM): "is this udi-run in a container, and the shared one outside? --share=off",
    ("unshare", EINVAL): "this kernel is built without user namespaces; see `udi doctor`",
    ("uid_map", EPERM): "a security module refuses the id map (AppArmor?); see `udi doctor`",
    ("open", ENOENT): "see `udi doctor`",
    ("pivot_root", EINVAL): "the host's root is an initramfs; boot the node with a real root",
    ("mount", EPERM): "a security module refuses the mount (AppArmor, SELinux?); see `udi doctor`",
    ("mount", EACCES): "a security module refuses the mount (AppArmor, SELinux?); see `udi doctor`",
    ("mount", ENODEV): "this kernel does not have that file system; see `udi doctor`",
}


def remedy(call: str, errno: int | None) -> str:
    """Return the hint for a system call that failed with `errno`; "" where there is none."""
    return _REMEDIES.get((call, errno or 0), "")


_FILES = {
    ENOSPC: "make room there",
    EDQUOT: "your quota there is used up: remove what you don't need",
    EFBIG: "the limit of file sizes is reached: raise it (ulimit -f, the job's)",
    EROFS: "that file system is read-only",
    EACCES: "you may not write there",
    EPERM: "you may not write there",
    EMFILE: "the limit of open files is reached: raise it (ulimit -n)",
    ENFILE: "this node's limit of open files is reached (sysctl fs.file-max)",
    ENOMEM: "there is no memory left: see ulimit -v, and the job's limit",
    EIO: "the file system fails: tell the site",
    ETIMEDOUT: "the file system's server does not answer: try again later, or tell the site",
    ESTALE: "the file system's server has lost the file: try again",
}


def disk_hint(errno: int | None, instead: str = "") -> str:
    """Return the hint for a file system's error: what it means, or `instead` what would help."""
    return ", or ".join(filter(None, (_FILES.get(errno or 0, ""), instead)))
