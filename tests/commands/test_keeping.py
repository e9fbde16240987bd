"""The commands that keep a store, as a user calls them: images, rm, prune, df, tag."""

import json
import os
import time
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError, counted
from rootless_udi.commands.common import names
from tests.conftest import User
from tests.kit import images, sifs
from tests.kit.nodes import state_files
from tests.kit.places import TREE
from tests.launch.test_run import wait_for

pytestmark = pytest.mark.needs("userns", "busybox")


@pytest.fixture
def three(user: User, tmp_path: Path) -> list[str]:
    """Three images, `one:1`, `two:2` and `host:5000/three:3`; their digests."""
    layout = images.Layout(tmp_path / "layout")
    found = []
    for number, name in enumerate(("one:1", "two:2", "host:5000/three:3"), 1):
        content = images.tar([*images.busybox_entries(), ("n", str(number).encode(), {})])
        layout.image(str(number), [content], {"Cmd": ["/bin/sh"]})
        source = f"oci:{layout.path}:{number}"
        done = user.run("udi", "pull", "-q", source)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.strip())
        assert user.run("udi", "tag", source, name).returncode == 0
        assert user.run("udi", "rm", source).returncode == 0
    return found


def sqfs(user: User, digest: str) -> Path:
    return Path(user.env["UDI_STORE"], "images", digest.replace(":", "-") + ".sqfs")


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (2, ("image",), "2 images"),
        (1, ("entry", "entries"), "1 entry"),
        (2, ("entry", "entries"), "2 entries"),
        (1, ("name is", "names are"), "1 name is"),
    ],
)
def test_a_number_has_its_word(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text


def names_now(user: User) -> list[str]:
    return sorted(user.run("udi", "images", "--names").stdout.split())


def test_images_as_they_are_typed(user: User, three: list[str]) -> None:
    done = user.run("udi", "images")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["NAME", "DIGEST", "PLATFORM", "SIZE", "PULLED"]
    assert max(map(len, lines)) <= 80
    assert sorted(line.split()[0] for line in lines[1:]) == ["host:5000/three:3", "one:1", "two:2"]
    assert done.stderr.startswith("3 images, ") and "shared" not in done.stderr
    for name in names_now(user):
        assert user.run("udi", "inspect", name).returncode == 0
    assert user.run("udi", "images", "--filter=reference=one").stderr.startswith("1 image, ")
    row = json.loads(user.run("udi", "images", "--json", "--filter=reference=one").stdout)[0]
    assert (row["name"], row["reference"]) == ("one:1", "docker.io/library/one:1")
    quiet = user.run("udi", "images", "-q").stdout.split()
    assert sorted(quiet) == sorted(digest[7:19] for digest in three)


def test_a_long_name_stays_whole_on_its_own_line(user: User, three: list[str]) -> None:
    name = "registry.example.org:5000/groups/astronomy/pipelines/calibration:2026.11"
    assert user.run("udi", "tag", "one:1", name).stdout == name + "\n"
    done = user.run("udi", "images")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80 and name in lines
    assert lines[lines.index(name) + 1].split()[0] == three[0][7:19]
    assert "shared by several names" in done.stderr and "3 images" in done.stderr
    assert user.run("udi", "images", env={"COLUMNS": "160"}).stdout.count("\n") == 5


def test_an_image_that_is_not_ones_own_to_read(user: User, three: list[str]) -> None:
    """As the gateway keeps a private one: its name can be seen."""
    sqfs(user, three[0]).chmod(0)
    done = user.run("udi-run", "one:1", "true")
    assert done.returncode == 125 and "failed: Permission denied\n" in done.stderr
    assert "hint: it is private: who brought it into the site's store lets others" in done.stderr


def test_a_path_in_place_of_a_name(user: User, three: list[str], tmp_path: Path) -> None:
    """Each command that takes a name of the store says what makes an image of a file."""
    squashfs = sqfs(user, three[0]).read_bytes()
    user.home.joinpath("app.sif").write_bytes(sifs.sif(squashfs))
    user.home.joinpath("app.sqfs").write_bytes(squashfs)
    user.home.joinpath("app.tar").write_bytes(images.tar(images.busybox_entries()))
    user.home.joinpath("notes").write_bytes(b"words")
    user.home.joinpath("root/bin").mkdir(parents=True)
    user.home.joinpath("layout").symlink_to(tmp_path / "layout")
    said = {
        "./app.sif": "udi import ./app.sif NAME puts it into the store",
        "app.sif": "udi import app.sif NAME puts it into the store",
        "./app.sqfs": "udi import ./app.sqfs NAME puts it into the store",
        "./app.tar": "it is a tar file: docker-archive:./app.tar, or oci-archive:./app.tar",
        "./layout": "it is an OCI image layout: udi pull oci:./layout NAME",
        "./root": "udi-run takes a root directory as it is",
        "./notes": "udi images shows what is in the store",
        "./nothing": "udi images shows what is in the store",
    }
    for path, hint in said.items():
        done = user.run("udi", "rm", path)
        message = f"udi: {path} is a path, not an image of a registry or a store"
        assert done.returncode == 125 and done.stderr == f"{message}\nudi: hint: {hint}\n", path
    done = user.run("udi", "inspect", "./root")
    assert (
        "is a directory, not an image's file\nudi: hint: udi-run takes it as it is" in done.stderr
    )
    commands = "fetch", "update", "tags", "pull --site", "share", "sign --key=x", "push one:1"
    for command in commands:
        assert said["./app.sif"] in user.run("udi", *command.split(), "./app.sif").stderr, command
    assert said["./app.sqfs"] in user.run("udi", "pull", "./app.sqfs").stderr
    done = user.run("udi", "tag", "./app.sif", "my/app:2")
    assert "udi import ./app.sif my/app:2 puts it into the store" in done.stderr
    assert user.run("udi", "import", "./app.sif", "my/app:2").returncode == 0
    assert "my/app:2" in names_now(user)
    # What cannot be meant keeps nothing else from being removed.
    done = user.run("udi", "rm", "./app.sif", "a b", "my/app:2", "one:1")
    assert done.returncode == 125 and "has a space" in done.stderr
    assert names_now(user) == ["host:5000/three:3", "two:2"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("reference=one", ["one:1"]),
        ("reference=*:2", ["two:2"]),
        ("name=docker.io/library/t*", ["two:2"]),
        ("platform=amd64", ["host:5000/three:3", "one:1", "two:2"]),
        ("untagged=true", []),
        ("dangling=false", ["host:5000/three:3", "one:1", "two:2"]),
        ("older=1h", []),
    ],
)
def test_filters(user: User, three: list[str], wanted: str, found: list[str]) -> None:
    done = user.run("udi", "images", "--names", f"--filter={wanted}")
    assert sorted(done.stdout.split()) == found, done.stderr


def test_wrong_filters_and_ages(user: User) -> None:
    done = user.run("udi", "images", "--filter=colour=red")
    assert done.returncode == 125 and "--filter=colour=red: unknown" in done.stderr
    assert "reference=PATTERN" in done.stderr
    for wrong in ("30", "d", "-3d", "3m", "1.5d", "\u0663d", "9999999d"):
        with pytest.raises(UdiError, match="not an age"):
            names.age(wrong, "--older-than")
    done = user.run("udi", "prune", "--older-than=soon")
    assert done.returncode == 125 and "--older-than=soon: not an age" in done.stderr
    done = user.run("udi", "prune", "--until-free=much")
    assert done.returncode == 125 and "--until-free=much: not a size" in done.stderr


def test_short_digests_and_several(user: User, three: list[str]) -> None:
    done = user.run("udi", "rm", three[0][7:19], "nosuch", "sha256:" + three[1][7:15])
    assert done.returncode == 125 and "nosuch" in done.stderr
    assert done.stdout.splitlines() == [
        "untagged one:1",
        f"removed {three[0]}",
        "untagged two:2",
        f"removed {three[1]}",
    ]
    facts = json.loads(user.run("udi", "inspect", three[2][7:13]).stdout)
    assert facts["digest"] == three[2]
    # A name goes before the digits.
    name = three[2][7:13]
    assert user.run("udi", "tag", "host:5000/three:3", name).returncode == 0
    assert user.run("udi", "rm", name).stdout == f"untagged {name}:latest\n"


def test_digits_of_several_images(user: User, three: list[str]) -> None:
    twin = sqfs(user, three[0][:17] + "0" * 54)
    twin.write_bytes(b"")
    done = user.run("udi", "rm", three[0][7:17])
    assert done.returncode == 125 and "is the beginning of 2 digests" in done.stderr


def test_tag_refuses_what_is_no_name(user: User, three: list[str], tmp_path: Path) -> None:
    for wrong in ("./x.sqfs", f"a@{three[0]}", "oci:/x"):
        done = user.run("udi", "tag", "one:1", wrong)
        assert done.returncode == 125 and "can't be given as a name" in done.stderr
    done = user.run("udi", "tag", "nosuch", "x")
    assert done.returncode == 125 and "is in no image store" in done.stderr
    # An image of the site's store is the site's to name.
    site = tmp_path / "site"
    site.mkdir()
    (site / "udi.toml").write_text(f'[store]\nsite = ["{user.env["UDI_STORE"]}"]\n')
    env = {"UDI_STORE": f"{user.home}/other", "UDI_SITE_DIR": str(site)}
    done = user.run("udi", "tag", "one:1", "x", env=env)
    assert done.returncode == 125 and "names are given in" in done.stderr
    assert "udi pull one:1" in done.stderr


def test_prune_takes_what_has_no_name(user: User, three: list[str]) -> None:
    assert user.run("udi", "tag", "two:2", "one:1").returncode == 0
    partial = sqfs(user, "sha256:" + "7" * 64).with_name(f".sha256-{'7' * 64}.1-ab.tmp")
    partial.write_bytes(b"of a pull that was killed")
    done = user.run("udi", "prune", "-n")
    assert done.stdout.split() == [three[0][7:19], "<none>"] and "would free" in done.stderr
    assert sqfs(user, three[0]).exists() and partial.exists()
    done = user.run("udi", "prune")
    assert done.stdout.split() == [three[0][7:19], "<none>"] and "freed " in done.stderr
    assert not sqfs(user, three[0]).exists() and not partial.exists()
    assert names_now(user) == ["host:5000/three:3", "one:1", "two:2"]


def test_prune_by_age_and_room(user: User, three: list[str]) -> None:
    now = time.time()
    for days, digest in zip((100, 50, 0), three, strict=True):
        os.utime(sqfs(user, digest), (now - days * 86400,) * 2)
    assert user.run("udi", "prune", "--older-than=1y").stdout == ""
    done = user.run("udi", "prune", "--older-than=60d")
    assert done.stdout.split() == [three[0][7:19], "one:1"]
    # With both, no more than what is old goes, and the rest of the wish is told as missed.
    done = user.run("udi", "prune", "--older-than=30d", "--until-free=1E")
    assert done.stdout.split() == [three[1][7:19], "two:2"]
    assert done.returncode == 125 and "no image that may go is left" in done.stderr
    assert user.run("udi", "prune", "--until-free=1k").stdout == ""
    done = user.run("udi", "prune", "--until-free=1E")
    assert done.stdout.split() == [three[2][7:19], "host:5000/three:3"]


def test_an_image_that_was_read_lately_is_not_old(user: User, three: list[str]) -> None:
    now = time.time()
    os.utime(sqfs(user, three[0]), (now - 3600, now - 90 * 86400))
    os.utime(sqfs(user, three[1]), (now - 80 * 86400, now - 90 * 86400))
    done = user.run("udi", "prune", "--older-than=60d")
    assert done.stdout.split() == [three[1][7:19], "two:2"]


@pytest.mark.needs("fuse")
def test_prune_leaves_what_runs_here(user: User, three: list[str]) -> None:
    os.utime(sqfs(user, three[0]), (1, 1))
    argv = ("udi-run", "one:1", "/bin/sh", "-c", "echo up; read x")
    process = user.popen(*argv, stdin=-1, stdout=-1)
    assert process.stdout and process.stdout.readline() == "up\n"
    os.utime(sqfs(user, three[0]), (1, 1))
    assert user.run("udi", "prune", "--older-than=1y").stdout == ""
    process.communicate("\n")
    # Its server ends a moment later, and reads no more then.
    wait_for(lambda: not state_files(user.home / "run"))
    os.utime(sqfs(user, three[0]), (1, 1))
    assert user.run("udi", "prune", "--older-than=1y").stdout.split()[1:] == ["one:1"]


def test_df(user: User, three: list[str]) -> None:
    assert user.run("udi", "tag", "two:2", "one:1").returncode == 0
    done = user.run("udi", "df")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(user.env["UDI_STORE"]) and "free on" in lines[0]
    assert lines[1].split() == ["WHAT", "COUNT", "SIZE", "UNTAGGED"]
    (found,) = json.loads(user.run("udi", "df", "--json").stdout)
    part = found["parts"]["images"]
    assert part["count"] == 3 and 0 < part["reclaimable"] < part["size"]
    files = Path(user.env["UDI_STORE"], "images").iterdir()
    assert part["size"] == sum(file.stat().st_size for file in files)


def test_without_a_store(user: User) -> None:
    store = user.env["UDI_STORE"]
    for words, line in (
        (("df",), f"there is no image store at {store}\n"),
        (("images",), f"no image is in {store}: udi pull IMAGE brings one\n"),
        (("images", "--filter=untagged=true"), "no image is as --filter asks\n"),
        (("images", "--names"), ""),
        (("images", "--quiet"), ""),
    ):
        done = user.run("udi", *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", line)
    done = user.run("udi", "prune")
    assert done.returncode == 0 and "there is no image store at" in done.stderr


def test_familiar_names_mean_the_same() -> None:
    assert names.familiar("docker.io/library/ubuntu:24.04", "docker.io") == "ubuntu:24.04"
    assert names.familiar("docker.io/me/app:1", "docker.io") == "me/app:1"
    assert names.familiar("docker.io/library/ubuntu:24.04", "reg.site") == (
        "docker.io/library/ubuntu:24.04"
    )
    assert names.familiar("reg.site/team/app:1", "reg.site") == "team/app:1"
    # Without its registry this would be another one's.
    assert names.familiar("reg.site/a.b/c:1", "reg.site") == "reg.site/a.b/c:1"
    assert names.familiar("oci:/x/y:1#5-6", "docker.io") == "oci:/x/y:1"


def test_the_package_is_udi(user: User) -> None:
    env = {"PYTHONPATH": str(TREE)}
    done = user.run("python3", "-m", "rootless_udi", "--version", env=env)
    assert (done.returncode, done.stdout) == (0, user.run("udi", "--version").stdout)
