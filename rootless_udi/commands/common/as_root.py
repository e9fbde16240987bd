"""udi as root: what root does itself, and who does the rest.

Root writes what only root may write: the configuration's copy, CDI files, bundles. All that reads
an image, a store or a registry's answer is done by a child that has become the store's owner
(`base.account`), with pipes in place of root's terminal and an environment of its own. What would
run a program of an image is refused. SECURITY.md says why this is safe.
"""

import codecs
import os
import pwd
import select
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Mapping

from rootless_udi.base import account, program
from rootless_udi.base.account import Account
from rootless_udi.base.errors import BYTES, OURS, UdiError, plain
from rootless_udi.base.privilege import refuse_privilege
from rootless_udi.base.process import complain, tell
from rootless_udi.commands.common.given import Arguments
from rootless_udi.config import load
from rootless_udi.store import sif

ITSELF = {
    *("bundle", "completion", "config.check", "config.compile", "config.import", "config.show"),
    *("gpu.cdi", "gpu.report"),
}
"""Done with root's rights: they read what root or the site wrote, and run nothing."""
OWNER = {
    *("df", "export", "extract", "fetch", "history", "images", "import", "inspect", "mpi.check"),
    *("optimize", "prune", "pull", "rm", "tag", "update", "verify"),
}
"""Done by the store's owner."""
NOBODY = {"doctor", "search", "site.capture", "site.list_sites", "site.show", "tags"}
"""Done by nobody: they need no account, only one that is not root's."""
REFUSED = {
    "sshd",
    *("jupyter.install", "jupyter.list", "jupyter.remove", "jupyter.start"),
    *("check", "exec", "login", "logout", "mpi.capture", "pack", "profile", "ps", "run", "shell"),
    *("gateway.audit", "gateway.expire", "gateway_serve.serve", "gateway.token", "share", "stats"),
    *("gateway_copies.backup", "gateway_copies.restore"),
    *("push", "sign"),
    "site.add_site",
    "stop",
}
"""An ordinary user's own affair, or a program of an image runs."""

_KEPT = (
    *("COLUMNS", "LANG", "LC_ALL", "LC_CTYPE", "NO_COLOR", "PATH"),
    *("SSL_CERT_DIR", "SSL_CERT_FILE", "UDI_SITE_DIR"),
)
"""Variables that the child is given; of what else root has in them it learns nothing."""
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_FOLDERS = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR")
_STATEMENT = "from rootless_udi.commands.udi import main; main()"


def name_of(function: Callable[[Arguments], int]) -> str:
    """Return the name of a command in the sets above: its module's, and what it does there."""
    module, own = (
        x.rpartition(".")[2].strip("_") for x in (function.__module__, function.__name__)
    )
    return own if own == module else f"{module}.{own}"


def serve(
    function: Callable[[Arguments], int], arguments: Arguments, words: list[str]
) -> int | None:
    """Do what root asked by `words`; None where the caller shall, with root's rights.

    `function` is the command's. Raises UdiError for what root is refused.
    """
    name = name_of(function)
    # sudo and su may leave another user's: nothing of his is read or written.
    os.environ["HOME"] = pwd.getpwuid(0).pw_dir
    for variable in _FOLDERS:
        os.environ.pop(variable, None)
    if name in ITSELF:
        return None
    if name in NOBODY:
        return run_as(account.account(getattr(arguments, "user", "") or "nobody"), words, {})
    if name not in OWNER:
        refuse_privilege("udi")
    file = getattr(arguments, {"import": "file", "pull": "image"}.get(name, ""), "")
    if file and (sif.is_sif(file) or file.startswith("oras://")):
        raise UdiError(
            f"importing {file} runs its environment scripts, and root runs nothing of an image",
            "do it as an ordinary user; udi export makes a squashfs file of it, which root imports",
        )
    store = _store(os.environ)
    one = _owner(store)
    if not getattr(arguments, "quiet", False):
        tell(f"udi: as user {one.name}, who owns the image store {store}")
    piped = name == "pull" and arguments.image == "-"
    return run_as(one, words, {"UDI_STORE": store}, piped)


def _store(environ: Mapping[str, str]) -> str:
    """Return the store that root means: $UDI_STORE, else the site's first."""
    own = environ.get("UDI_STORE", "")
    if own:
        if not own.startswith("/"):
            raise UdiError(f"UDI_STORE={own}: is not an absolute path", "set it to one")
        return own
    found = load.load(environ).site_stores
    if not found:
        raise UdiError(
            "root has no images of its own, and the configuration names no store.site",
            "UDI_STORE=/shared/udi/images udi ...; docs/site.md tells how to make such a store",
        )
    return found[0]


def _owner(store: str) -> Account:
    """Return who handles the images of a store; raises UdiError where that would be root."""
    make = f"install -d -m 755 -o ACCOUNT {store}, with an account that is for nothing else"
    try:
        found = os.stat(store)
    except OSError as error:
        raise UdiError(f"looking at image store {store} failed: {error.strerror}", make) from None
    if found.st_uid == 0:
        raise UdiError(
            f"the image store {store} is root's, and no image is ever read with root's rights",
            f"give it an account of its own: chown -R ACCOUNT: {store}",
        )
    try:
        return account.account(found.st_uid)
    except UdiError as error:
        raise UdiError(f"the image store {store}: {error.message}", error.hint) from None


def _environment(one: Account, more: Mapping[str, str]) -> dict[str, str]:
    found = {name: os.environ[name] for name in _KEPT if name in os.environ}
    if os.isatty(2):
        found.setdefault("COLUMNS", str(shutil.get_terminal_size().columns))
    for name in (each for one in _PROXIES for each in (one, one.upper())):
        value = os.environ.get(name, "")
        if "@" in value and name.lower() != "no_proxy":
            tell(f"udi: {name} holds a password, and is not given to user {one.name}")
        elif value:
            found[name] = value
    return {**found, "HOME": one.home, "USER": one.name, "LOGNAME": one.name, **more}


def run_as(one: Account, words: list[str], more: Mapping[str, str], piped: bool = False) -> int:
    """Run udi with `words` as another account and return its status; raises OSError.

    What it prints is root's terminal's to show, not to obey: it comes through pipes, plain.
    `piped`: it reads root's standard input, where that is a pipe or a file: neither leads further.
    """
    kind = os.fstat(0).st_mode if piped else 0
    given = 0 if stat.S_ISFIFO(kind) or stat.S_ISREG(kind) else -1
    environ = _environment(one, more)
    try:
        here = os.getcwd()
    except OSError:
        here = "/"
    out, err, parent = os.pipe(), os.pipe(), os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            source = os.open("/dev/null", os.O_RDWR) if given < 0 else given
            for fd, target in ((source, 0), (out[1], 1), (err[1], 2)):
                os.dup2(fd, target)
            account.become(one)
            if os.getppid() == parent:
                _become_udi(one, here, words, environ)
        except BaseException as error:
            why = error.strerror if isinstance(error, OSError) else repr(error)
            complain("udi", f"becoming user {one.name} failed: {why}")
        finally:
            os._exit(OURS)
    os.close(out[1])
    os.close(err[1])
    ended = False
    try:
        _relay({out[0]: 1, err[0]: 2})
        ended = True
    finally:
        if not ended:
            os.kill(pid, signal.SIGTERM)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


def _become_udi(one: Account, here: str, words: list[str], environ: dict[str, str]) -> None:
    argv = program.argv(_STATEMENT, *words)
    for path, mode in ((argv[0], os.X_OK), (__file__, os.R_OK)):
        if not os.access(path, mode):
            complain(
                "udi",
                f"user {one.name} can't read {path}",
                "install rootless_udi and Python where all users can: docs/install.md",
            )
            return
    try:
        # By its path and with his rights: as a descriptor it would lead him into root's folders.
        os.chdir(here)
    except OSError:
        os.chdir("/")
    os.execve(argv[0], argv, environ)


def _relay(files: dict[int, int]) -> None:
    """Write what comes from each descriptor to its target, plain, until all have ended."""
    decoders = {fd: codecs.getincrementaldecoder("utf-8")("surrogateescape") for fd in files}
    sys.stdout.flush()
    waiting = select.poll()
    for fd in files:
        waiting.register(fd, select.POLLIN)
    while files:
        for fd, _ in waiting.poll():
            data = os.read(fd, 1 << 16)
            text = plain(decoders[fd].decode(data, not data), keep=f"\n\t{BYTES}")
            left = text.encode("utf-8", "surrogateescape")
            while left:
                left = left[os.write(files[fd], left) :]
            if not data:
                waiting.unregister(fd)
                os.close(fd)
                del files[fd]
