"""What is typed by who knows another tool: each does what is meant, or its first answer says what
to type. Nothing that is typed as an option's value is pulled."""

from pathlib import Path

import pytest

from tests.conftest import User

pytestmark = pytest.mark.needs("userns", "fuse", "busybox")


@pytest.mark.parametrize(
    ("typed", "out"),
    [
        # docker, podman, podman-hpc
        ("-it --rm IMAGE echo a", "a"),
        ("run -it --rm -v HOME:/data -w /data IMAGE cat file", "content"),
        ("-v HOME:/data:ro,z IMAGE cat /data/file", "content"),
        ("--mount type=bind,source=HOME,target=/data IMAGE cat /data/file", "content"),
        ("--workdir /usr IMAGE pwd", "/usr"),
        ("--entrypoint /bin/echo IMAGE hi", "hi"),
        ("--env A=1 --net=host --ipc host IMAGE sh -c 'echo $A'", "1"),
        ("--env-file HOME/vars IMAGE sh -c 'echo $A'", "1"),
        ("--read-only --init --shm-size 1g IMAGE echo a", "a"),
        # apptainer, charliecloud
        ("--bind HOME:/data,/tmp --pwd /data IMAGE cat file", "content"),
        ("-B HOME:/data --no-home IMAGE cat /data/file", "content"),
        ("-b HOME:/mnt IMAGE -- cat /mnt/file", "content"),
        ("--cleanenv --writable-tmpfs IMAGE sh -c 'echo >/new; ls /new'", "/new"),
        # enroot, pyxis
        ("--rw --mount HOME:/data IMAGE cat /data/file", "content"),
        ("--container-image IMAGE --container-mounts=HOME:/data cat /data/file", "content"),
    ],
)
def test_done(user: User, box: Path, typed: str, out: str) -> None:
    (user.home / "file").write_text("content\n")
    (user.home / "vars").write_text("A=1\n")
    line = typed.replace("IMAGE", str(box)).replace("HOME", str(user.home))
    done = user.run("sh", "-c", f"udi-run {line}")
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", out)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("exec IMAGE id", "udi-run IMAGE COMMAND"),
        ("pull ubuntu:24.04", "udi pull IMAGE"),
        ("build .", "docker, podman, buildah"),
        ("-d IMAGE id", "end the line with &"),
        ("-u 0 IMAGE id", "you are you in a container"),
        ("--user root IMAGE id", "you are you in a container"),
        ("--fakeroot IMAGE id", "--writable"),
        ("-p 80:80 IMAGE id", "the network is the host's"),
        ("--gpus 2 IMAGE id", "CUDA_VISIBLE_DEVICES"),
        ("--network none IMAGE id", "the host's"),
        ("--entrypoint bash IMAGE id", "--entrypoint=bash "),
        ("-v IMAGE id", "to be told more, --verbose"),
        ("-v data:/data IMAGE id", "$PWD/DIR:/DIR"),
        ("--devices=x IMAGE id", "did you mean --device?"),
    ],
)
def test_said(user: User, box: Path, typed: str, said: str) -> None:
    line = typed.replace("IMAGE", box.name)
    done = user.run("udi-run", *line.split())
    assert done.returncode == 125 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and said in lines[1]


def test_help_and_version(user: User) -> None:
    assert user.run("udi-run", "help").stdout == user.run("udi-run", "--help").stdout
    assert user.run("udi-run", "version").stdout == user.run("udi-run", "--version").stdout


def test_an_image_that_is_taken_for_the_command(user: User, box: Path) -> None:
    """UDI_IMAGE is set (by a workload manager's plugin, or a profile), and an image is named."""
    done = user.run("udi-run", "ubuntu:24.04", "id", env={"UDI_IMAGE": str(box)})
    assert done.returncode == 127
    assert done.stderr.splitlines()[1] == (
        f"udi-run: hint: UDI_IMAGE is set to {box}, so the first word is the command; "
        "another image is --image=IMAGE"
    )
