"""What refuses a system call is named; tests/kernels has the real security modules and settings."""

from pathlib import Path

import pytest

from tests.conftest import User

PRETENDS = """
    mount -t tmpfs none /sys/fs
    mkdir /sys/fs/selinux
    echo 1 >/sys/fs/selinux/enforce
    exec setpriv --ambient-caps=-all --inh-caps=-all "$@"
"""
WHERE = {"/image": "while the container is built", "/tmp": "on the host's own tree"}


@pytest.mark.needs("userns", "fuse", "strace", "busybox", "mksquashfs")
@pytest.mark.parametrize("path", WHERE)
@pytest.mark.parametrize("answer", ["EACCES", "EPERM"])
def test_a_mount_that_is_refused(user: User, box: Path, path: str, answer: str) -> None:
    """Also once the host's files are elsewhere: what is looked at are the host's."""
    inject = f"inject=mount:error={answer}"
    words = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-P",
        path,
        "-e",
        "trace=mount",
        "-e",
        inject,
    ]
    outer = ["unshare", "--user", "--map-current-user", "--keep-caps", "--mount"]
    done = user.run(*outer, "sh", "-c", PRETENDS, "sh", *words, "udi-run", box, "true")
    assert done.returncode == 125
    assert f"udi-run: mount failed on {path}: " in done.stderr, done.stderr
    assert "hint: SELinux is in force: the domain ? seems to lack a rule (" in done.stderr
    assert "ausearch -m AVC -ts recent" in done.stderr
    # With nothing in force all that is known is that something refuses it.
    done = user.run(*words, "udi-run", box, "true")
    assert "hint: a security module refuses the mount (AppArmor, SELinux?)" in done.stderr
