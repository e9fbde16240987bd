"""udi import of a SIF file: labels, variables and runscript, of the real Apptainer where it is."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import images, probes, sifs

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")

LABELS = {"Author": "me", "n": 1, "org.label-schema.build-arch": "amd64"}
ENV = {
    "10-docker2singularity.sh": 'export PATH="${PATH:-/bin}:/opt/app"\n'
    'export A="${A:-from the image}"\n',
    "90-environment.sh": "export B='x\ny'\nAPPTAINER_X=1\nexport APPTAINER_X\n",
    "95-apps.sh": "# nothing\n",
    "99-base.sh": 'export LD_LIBRARY_PATH="/opt/lib:/.singularity.d/libs"\n',
}


def squashfs(folder: Path, env: dict[str, str], **files: str) -> bytes:
    entries = [*images.busybox_entries(), ("lib", None, {})]
    entries += [(f".singularity.d{x}", None, {}) for x in ("", "/env")]
    for name, text in env.items():
        entries.append((f".singularity.d/env/{name}", text.encode(), {"mode": 0o755}))
    files = {"runscript": '#!/bin/sh\necho run "$@"\n', "labels.json": json.dumps(LABELS), **files}
    for name, text in files.items():
        if text:
            entries.append((f".singularity.d/{name}", text.encode(), {"mode": 0o755}))
    target = folder / "root.sqfs"
    target.unlink(missing_ok=True)
    argv = ["mksquashfs", "-", str(target), "-tar", "-quiet", "-no-progress", "-comp", "gzip"]
    subprocess.run(argv, input=images.tar(entries), check=True, capture_output=True)
    return target.read_bytes()


def test_an_image(user: User) -> None:
    path = user.home / "app.sif"
    path.write_bytes(sifs.sif(squashfs(user.home, ENV), signed=True))
    done = user.run("udi", "pull", path, "my/app:1", env={"A": "the caller's"})
    assert done.returncode == 0, done.stderr
    assert "its signatures are not checked" in done.stderr
    script = 'echo "$A $PATH $LD_LIBRARY_PATH ${APPTAINER_X-unset}"; echo "$B"'
    found = user.run("udi-run", "my/app:1", "sh", "-c", script)
    assert found.stdout.startswith("from the image "), found.stderr
    assert ":/opt/app /opt/lib unset\nx\ny\n" in found.stdout
    assert user.run("udi-run", "--entrypoint", "my/app:1", "a", "b c").stdout == "run a b c\n"
    facts = json.loads(user.run("udi", "inspect", "my/app:1").stdout)
    assert facts["labels"] == {"Author": "me", "org.label-schema.build-arch": "amd64"}
    assert facts["architecture"] == "amd64"
    # What is known of its libraries lets the host's MPI in.
    assert facts["elf"]
    assert "nothing is known" not in user.run("udi", "mpi", "check", "my/app:1").stderr
    # The same squashfs is the same image.
    again = user.run("udi", "import", path, "other:1")
    assert again.stdout == done.stdout
    assert not list((user.home / "store/blobs").iterdir())


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"1.sh": "exit 3\n"}, "its environment scripts are not used: the image's sh ended with 3"),
        ({"1.sh": "echo '\x1b[31mbad' >&2; exit 1\n"}, "its environment scripts are not used: "),
        ({"1.sh": "while :; do :; done\n"}, "they took more than 20 s"),
        ({"1.sh": "export A=$(head -c 1100000 /dev/zero | tr '\\0' x)\n"}, "are not used"),
    ],
    ids=["exit", "escape", "endless", "large"],
)
def test_scripts_that_fail(user: User, env: dict[str, str], words: str) -> None:
    path = user.home / "app.sif"
    path.write_bytes(sifs.sif(squashfs(user.home, env)))
    done = user.run("udi", "import", path, "my/app:1")
    assert done.returncode == 0, done.stderr
    assert words in done.stderr and "\x1b" not in done.stderr
    assert user.run("udi-run", "my/app:1", "echo", "in").stdout == "in\n"


def test_what_is_missing_or_damaged(user: User) -> None:
    path = user.home / "app.sif"
    whole = squashfs(user.home, {}, **{"runscript": "", "labels.json": "[" * 100_000})
    path.write_bytes(sifs.sif(whole))
    assert user.run("udi", "import", path, "my/app:1").returncode == 0
    done = user.run("udi-run", "--entrypoint", "--image=my/app:1")
    assert "the image has no ENTRYPOINT" in done.stderr
    done = user.run("udi", "import", path)
    assert "app.sif does not say what image it is of" in done.stderr
    for data, words in (
        (sifs.sif(b"hsqs" + bytes(500)), "is no squashfs file"),
        (sifs.sif(whole[:5000]), "it is cut off"),
        (sifs.sif(whole)[:50_000], "its partition is at"),
        (sifs.sif(whole, sifs.partition(5)), "an encrypted squashfs"),
    ):
        path.write_bytes(data)
        done = user.run("udi", "import", path, "x:1")
        assert done.returncode == 125 and words in done.stderr, done.stderr
    assert not list((user.home / "store/blobs").iterdir())
    done = user.run("udi-run", "app.sif", "true")
    assert done.returncode == 125
    assert "app.sif failed: its root file system is an encrypted squashfs" in done.stderr
    done = user.run("udi", "export", "app.sif", "x.sqfs")
    assert "its root file system is an encrypted squashfs" in done.stderr


@pytest.mark.needs("apptainer", "skopeo")
def test_apptainers_own(user: User) -> None:
    sections = (
        '%environment\n  export B="b of $A"\n%runscript\n  echo run "$@"\n%labels\n  Author me\n'
    )
    sifs.by_apptainer(user, sections)
    done = user.run("udi", "import", "app.sif", "my/app:1")
    assert done.returncode == 0, done.stderr
    words = ("sh", "-c", 'echo "$A, $B"')
    assert user.run("udi-run", "my/app:1", *words).stdout == "docker, b of docker\n"
    theirs = user.run(probes.APPTAINER, "exec", "--cleanenv", "app.sif", *words)
    assert theirs.stdout == "docker, b of docker\n", theirs.stderr
    assert user.run("udi-run", "--entrypoint", "my/app:1", "x").stdout == "run x\n"
    assert json.loads(user.run("udi", "inspect", "my/app:1").stdout)["labels"]["Author"] == "me"
