"""Which directories are covered where there is no overlay: a pure function of steps and image."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.plan.covers import MANY, Cover, covers, warning
from rootless_udi.plan.steps import Directory, File, Mount, Step, Symlink

if TYPE_CHECKING:
    from rootless_udi.plan.covers import Look

SOME = {
    "/": "directory",
    "/etc": "directory",
    "/etc/passwd": "file",
    "/etc/resolv.conf": "-> ../run/none",
    "/etc/mtab": "-> /proc/mounts",
    "/usr": "directory",
    "/usr/lib": "directory",
    "/usr/lib/x.so": "file",
    "/proc": "directory",
    "/tmp": "directory",
    "/var": "directory",
    "/home": "-> var/home",
    "/lib": "-> usr/lib",
}
"""An image: "directory", "file", or the text of a link."""


def looking(image: dict[str, str]) -> "Look":
    def look(path: str) -> tuple[str, str]:
        said = image.get(path, "")
        return ("link", said[3:]) if said.startswith("->") else (said, "")

    return look


def bind(target: str) -> Mount:
    return Mount(target, "/source", reason="r")


def found(
    *steps: Step, files: tuple[str, ...] = (), changes: dict[str, str] | None = None
) -> list[tuple[str, ...]]:
    image = {**SOME, **(changes or {})}
    made = covers(steps, looking(image), frozenset(files))
    return [(cover.target, *cover.without) for cover in made]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([bind("/tmp"), File("/etc/passwd", ""), bind("/proc")], []),
        ([bind("/data")], [("/",)]),
        ([bind("/data"), bind("/data/in"), bind("/other/deep/er")], [("/",)]),
        ([bind("/usr/share/x")], [("/usr",)]),
        ([bind("/lib/new")], [("/usr/lib",)]),
        ([bind("/home/ada")], [("/var",)]),
        ([bind("/tmp"), bind("/tmp/any/thing")], []),
        ([bind("/usr/lib/a"), bind("/new")], [("/",), ("/usr/lib",)]),
        ([Symlink("/etc/mtab", "/proc/mounts")], []),
        ([Symlink("/etc/mtab", "/else")], [("/etc", "mtab")]),
        ([Symlink("/usr/lib/x.so.1", "x.so")], [("/usr/lib",)]),
        ([File("/etc/hosts", "")], [("/etc",)]),
        ([File("/etc/hosts", ""), File("/etc/passwd", "")], [("/etc", "passwd")]),
        ([Directory("/usr/lib/m"), Symlink("/usr/lib/m/a", "b")], [("/usr/lib",)]),
        ([Directory("/usr/lib"), bind("/usr/lib/m")], [("/usr/lib",)]),
        ([Mount("/run", "tmpfs", "tmpfs")], [("/",)]),
        ([bind("/usr/lib/x.so/deeper")], []),
    ],
)
def test_the_deepest_directory_is_covered(
    steps: list[Step], expected: list[tuple[str, ...]]
) -> None:
    assert found(*steps) == expected


def test_a_file_in_the_place_of_a_link_that_leads_nowhere() -> None:
    assert found(File("/etc/resolv.conf", "")) == [("/etc", "resolv.conf")]
    assert found(bind("/etc/resolv.conf"), files=("/etc/resolv.conf",)) == [("/etc", "resolv.conf")]
    one, other = bind("/usr/lib/l"), bind("/usr/lib/d")
    assert found(one, files=("/usr/lib/l",), changes={"/usr/lib/l": "-> x.so"}) == []
    assert found(other, files=("/usr/lib/d",), changes={"/usr/lib/d": "-> gone"}) == [
        ("/usr/lib", "d")
    ]


def test_the_callers_folder_may_stay_out() -> None:
    """What nobody asked for by name is no reason to fail; and is not mounted over the image's."""
    folder = bind("/project/me").replace(only_empty=True)
    look = looking({**SOME, "/project": "directory"})
    (cover,) = covers([folder], look)
    assert (cover.target, cover.required) == ("/project", False)
    (cover,) = covers([folder, bind("/project/other")], look)
    assert cover.required
    look = looking({**SOME, "/project": "directory", "/project/me": "directory"})
    assert [one.target for one in covers([folder, bind("/project/me/in")], look)] == ["/project/me"]


@pytest.mark.parametrize(
    ("change", "step", "expected"),
    [
        ({"/var/tmp": "-> ../tmp"}, bind("/var/tmp"), [("/var", "tmp")]),
        ({"/tmp": "file"}, bind("/tmp"), [("/", "tmp")]),
        ({"/proc": "-> nowhere"}, bind("/proc"), [("/", "proc")]),
        ({"/etc": "-> usr/etc", "/usr/etc": "directory"}, File("/etc/a", ""), [("/usr/etc",)]),
        ({"/etc": "-> gone"}, File("/etc/a", ""), [("/", "etc")]),
        ({"/etc": "-> tmp"}, File("/etc/a", ""), [("/", "etc")]),
        ({"/opt": "-> var/opt"}, bind("/opt/udiImage"), [("/", "opt")]),
        ({"/etc/hosts": "directory"}, File("/etc/hosts", ""), [("/etc", "hosts")]),
        ({"/a": "-> b", "/b": "-> a"}, bind("/a/x"), []),
        ({"/up": "-> ../../.."}, bind("/up/x"), [("/",)]),
    ],
)
def test_what_stands_in_the_way_is_left_out(
    change: dict[str, str], step: Step, expected: list[tuple[str, ...]]
) -> None:
    """As `layover` has it in an overlay: a standard place gives way, other files do not."""
    assert found(step, changes=change) == expected


def test_a_warning_says_what_to_do() -> None:
    cover = Cover("/usr/lib", (), "/usr/lib/x is not in the image (volume)")
    assert warning(cover, MANY) == ""
    assert "2000 entries of /usr/lib" in warning(cover, 2000)


PARTS = st.sampled_from(["a", "b", "c", "..", "/", "a/b", "../c", "/b/a"])
PATHS = st.sampled_from(["/a", "/b", "/c", "/a/b", "/a/c", "/b/a", "/a/b/c", "/b/a/c"])


@given(
    folders=st.sets(PATHS),
    links=st.dictionaries(PATHS, PARTS),
    targets=st.lists(PATHS, max_size=4),
)
def test_any_image_has_covers_that_are_directories(
    tmp_path_factory: pytest.TempPathFactory,
    folders: set[str],
    links: dict[str, str],
    targets: list[str],
) -> None:
    """From the top down, each once, and none below what a cover above leaves out."""
    root = tmp_path_factory.mktemp("image")
    for path in sorted(folders):
        (root / path[1:]).mkdir(parents=True, exist_ok=True)
    for path, text in sorted(links.items()):
        link = root / path[1:]
        if link.parent.is_dir() and not link.parent.is_symlink() and not os.path.lexists(link):
            link.symlink_to(text)

    def look(path: str) -> tuple[str, str]:
        here = Path(f"{root}{path}")
        if here.is_symlink():
            return "link", os.readlink(here)
        return ("directory" if here.is_dir() else "file" if here.exists() else ""), ""

    made = covers([bind(target) for target in targets], look)
    names = [cover.target for cover in made]
    assert names == sorted(set(names), key=lambda n: (n.rstrip("/").count("/"), n))
    for cover in made:
        assert look(cover.target)[0] == "directory"
