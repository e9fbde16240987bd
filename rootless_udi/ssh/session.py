"""What sshd starts for each session (ForceCommand): it enters the container, and becomes a command.

sshd gives it a few variables of its own and those that the client sent. So that it depends on no
variable of the job's, all else is in its words: where the container's record is, the user's HOME,
and the options of udi-run that make a command's environment.
"""

import os
import sys
from typing import NoReturn

from rootless_udi.base import process
from rootless_udi.base.errors import OURS, UdiError
from rootless_udi.base.syscalls import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, prctl
from rootless_udi.launch import command as last
from rootless_udi.node import places
from rootless_udi.node.record import join, read_record
from rootless_udi.plan import options
from rootless_udi.ssh import sftp, texts

_KILL = 9
_SHELLS = ("/bin/bash", "/bin/sh")
_OURS = ("SSH_ORIGINAL_COMMAND", "MAIL", "OLDPWD", "SHLVL", "_")
"""Variables that sshd and the login shell have set for this process, not for the command."""


def main() -> NoReturn:
    """Do what the client asks for, in the container; never returns."""
    process.occupy()
    sys.exit(process.guarded("udi sshd", lambda: run(sys.argv[1:])))


def run(words: list[str]) -> int:
    """Enter the container and become the command; return SFTP's exit status.

    `words`: state directory, the record's name, HOME, the folder of `udi sshd`, the script of a
    shell for people, options of udi-run.
    """
    directory, name, home, folder, shell, *rest = words
    environ = last.given()
    asked = environ.get("SSH_ORIGINAL_COMMAND")
    for one in _OURS:
        environ.pop(one, None)
    environ["HOME"] = home
    values, _ = options.leading(rest)
    kept = {k: v for k, v in values.items() if k in ("env", "env_file", "clearenv")}
    argv = ("/bin/sh", "-c", asked) if asked else ("/bin/sh", "-c", shell, "sh")
    request = options.Request(command=argv, quiet=True, **kept)  # type: ignore[arg-type]
    try:
        os.chdir(folder)
    except OSError:
        os.chdir("/")
    own = last.own_variables(request)
    parent = os.getppid()
    _, fd = places.state([directory], make=False)
    record, at = read_record(fd, name) if fd >= 0 else (None, -1)
    if record is None:
        raise _ended()
    if lost := record.lost():
        raise UdiError(f"the container has lost its image server: {lost}")
    plan, env, _ = last.planned(record, request, environ, own)
    if not join(record, at):
        raise _ended()
    # It ends with its connection. The kernel has taken this back as the process changed its user
    # namespace.
    prctl(PR_SET_DUMPABLE, 1)
    prctl(PR_SET_PDEATHSIG, _KILL)
    if os.getppid() != parent:
        return OURS
    where, _ = last.arrive(request, [home, folder])
    if asked != texts.SUBSYSTEM:
        if not os.access(env.get("SHELL", ""), os.X_OK):
            env["SHELL"] = next((one for one in _SHELLS if os.access(one, os.X_OK)), "/bin/sh")
        env["PWD"] = where
        last.execute(plan, env, where)
    # What a module of ours would import now is the image's code.
    sys.meta_path.clear()
    os.closerange(3, 256)
    return sftp.SftpServer(0, 1, os.fsencode(home)).run()


def _ended() -> UdiError:
    return UdiError("the container has ended", "start its job again")


if __name__ == "__main__":
    main()
