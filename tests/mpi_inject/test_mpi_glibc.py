"""The host's C library over an image's older one: what a pull notes, the plan, what is refused."""

import os
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.mpi import planner
from rootless_udi.plan.steps import Env, Injection, Mount
from tests.kit import mpihosts as h
from tests.mpi_inject.test_mpi_plan import golden, inject, sources

pytestmark = pytest.mark.needs("gcc")
ARCH = h.ARCH
LIBC = f"{ARCH}/libc.so.6"


def host(version: str = "2.41", folder: str = ARCH) -> h.Tree:
    return {**h.mpich_host("2.38"), **h.whole_glibc(version, folder)}


def image(version: str = "2.36", more: tuple[str, ...] = ()) -> h.Tree:
    return {**h.mpich_image(glibc_version=version), **h.whole_glibc(version, more=more)}


def refused(*arguments: Any, **named: Any) -> str:
    with pytest.raises(UdiError) as caught:
        inject(*arguments, **named)
    assert caught.value.hint, "every refusal says what to do"
    head, _, why = caught.value.message.partition("; the host's glibc can't come along: ")
    assert "needs GLIBC_2.38, and the image's glibc has GLIBC_2." in head
    return why


def family(found: Injection) -> set[str]:
    """Return the names of glibc's files that are bound over the image's."""
    return {os.path.basename(target) for target in over(found)}


def over(found: Injection) -> list[str]:
    mounts = [s for s in found.steps if isinstance(s, Mount) and s.over]
    return [s.target for s in mounts if "needs GLIBC_2.38" in s.reason]


OTHER_CLASS = b"\x7fELF\x01\x01\x01" + bytes(9) + h.library("libm.so.6")[16:]
"""A library that says it is of 32 bits."""
WHOLE = h.library("libc.so.6", defines=("GLIBC_2.2.5", "GLIBC_2.36"))
ALL = {*h.PLAIN, "libc.so.6", "libnss_compat.so.2", "ld-linux-x86-64.so.2"}


def test_ldd_is_the_hosts(tmp_path: Path) -> None:
    """Where both have one: the image's by whatever name, the host's if it is there."""
    tree: h.Tree = {**image(), "/usr/bin/ldd": b"#!/bin/bash\n", "/bin": "usr/bin"}
    found = inject(host(), tree, tmp_path)
    (mount,) = [s for s in found.steps if isinstance(s, Mount) and s.target == "/usr/bin/ldd"]
    assert (mount.required, mount.over) == (False, True)


def test_folders_of_before_glibc_hwcaps(tmp_path: Path) -> None:
    libm = h.library("libm.so.6", defines=("GLIBC_2.2.5",))
    places = [f"{ARCH}/haswell/libm.so.6", f"{ARCH}/tls/haswell/avx512_1/x86_64/libm.so.6"]
    found = over(inject(host(), {**image(), **dict.fromkeys(places, libm)}, tmp_path))
    assert set(places) <= set(found)


def test_the_whole_family_comes_along(tmp_path: Path) -> None:
    found = inject(host(), image(), tmp_path)
    golden("glibc", found, tmp_path)
    assert family(found) == ALL
    assert {h.LOADER, "/usr" + h.LOADER, LIBC, LIBC.removeprefix("/usr")} <= set(found.together)


def test_none_of_it_where_no_library_needs_it(tmp_path: Path) -> None:
    found = inject({**h.mpich_host("2.36"), **h.whole_glibc("2.41")}, image(), tmp_path)
    assert not over(found) and not found.together
    assert not [s for s in found.steps if "libc.so.6" in s.target]


def test_none_of_it_for_an_optional_library(tmp_path: Path) -> None:
    """Where one must come along that needs it, the optional one is no longer left out."""
    needy = h.library("libmpicxx.so.12", needed=("libmpi.so.12",), versions=h.needs("2.41"))
    tree = {**host(), **h.mpich_host("2.36"), "/opt/mpich/lib/libmpicxx.so.12": needy}
    found = inject(tree, image(), tmp_path / "left")
    assert "libmpicxx.so.12 is left out: libmpicxx.so.12 needs GLIBC_2.41" in found.notes
    assert not over(found)
    found = inject({**tree, **h.mpich_host("2.38")}, image(), tmp_path / "taken")
    assert f"{planner.LIB}/libmpicxx.so.12" in sources(found)
    assert family(found) == ALL


def test_private_symbols_are_those_of_the_same_system(tmp_path: Path) -> None:
    tree = host()
    private = (("libc.so.6", "GLIBC_PRIVATE"),)
    tree["/opt/mpich/lib/libmpi.so.12"] = h.library("libmpi.so.12", h.C, versions=private)
    found = inject(tree, image(), tmp_path)
    assert LIBC in sources(found)


def test_every_copy_that_ld_so_may_take(tmp_path: Path) -> None:
    """The one of /lib64 on its own, those of hwcaps; a 32-bit folder and a sysroot stay."""
    tree = image()
    libm = h.library("libm.so.6", defines=("GLIBC_2.2.5",))
    copies = [f"{ARCH}/glibc-hwcaps/x86-64-v3/libm.so.6", "/usr/lib64/libm.so.6"]
    tree |= dict.fromkeys(copies, libm)
    others = ["/opt/conda/sysroot/lib64/libm.so.6", f"{ARCH}/glibc-hwcaps/x86-64-v3/deep/libm.so.6"]
    tree |= dict.fromkeys(others, libm)
    found = over(inject(host(), tree, tmp_path))
    assert set(copies) <= set(found)
    assert not set(others) & set(found)


def test_files_of_bullseye_are_links_to_others(tmp_path: Path) -> None:
    tree = image("2.31")
    for name in ("libc.so.6", "libm.so.6"):
        real = name.replace(".so.6", "-2.31.so")
        tree |= {f"{ARCH}/{real}": tree[f"{ARCH}/{name}"], f"{ARCH}/{name}": real}
    found = over(inject(host(), tree, tmp_path))
    assert {f"{ARCH}/libc-2.31.so", f"{ARCH}/libm-2.31.so"} <= set(found)
    assert LIBC not in found


def test_a_host_of_another_layout_is_told_of_the_images_folders(tmp_path: Path) -> None:
    tree = {**image(), f"{ARCH}/gconv/ISO8859-1.so": h.library("ISO8859-1.so")}
    found = inject(host(folder="/usr/lib64"), tree, tmp_path)
    assert sources(found)[LIBC].endswith("/host/usr/lib64/libc.so.6")
    told = [(e.op, e.name, e.value) for e in found.environment if "does not know" in e.reason]
    assert ("append", "GCONV_PATH", f"{ARCH}/gconv") in told
    assert ("append", "LD_LIBRARY_PATH", ARCH) in told
    # Debian 11 without a merged /usr: libc in /lib, iconv's modules in /usr/lib.
    apart = {k.removeprefix("/usr"): v for k, v in image().items() if k.startswith("/usr/lib/")}
    apart |= {h.LOADER: f"{ARCH.removeprefix('/usr')}/ld-linux-x86-64.so.2"}
    apart |= {"/app/run": tree["/app/run"], f"{ARCH}/gconv/ISO8859-1.so": h.library("ISO8859-1.so")}
    found = inject(host(folder="/usr/lib64"), apart, tmp_path / "apart")
    assert [e.value for e in found.environment if e.name == "GCONV_PATH"] == [f"{ARCH}/gconv"]
    assert f"{ARCH.removeprefix('/usr')}/libc.so.6" in sources(found)
    same = inject(host(), tree, tmp_path / "same")
    assert not [e for e in same.environment if isinstance(e, Env) and e.name == "GCONV_PATH"]


def test_what_the_image_lacks_and_a_library_needs_comes_beside(tmp_path: Path) -> None:
    tree = host()
    tree[f"{ARCH}/libmvec.so.1"] = h.library("libmvec.so.1", defines=("GLIBC_2.22",))
    tree["/opt/mpich/lib/libmpi.so.12"] = h.library(
        "libmpi.so.12", h.NEWER, needed=("libmvec.so.1",), versions=h.needs("2.38")
    )
    found = sources(inject(tree, image(), tmp_path))
    assert f"{planner.LIB}/libmvec.so.1" in found and f"{ARCH}/libmvec.so.1" not in found


def test_a_host_without_an_optional_file(tmp_path: Path) -> None:
    tree = host()
    del tree[f"{ARCH}/libnss_compat.so.2"]
    found = inject(tree, image(), tmp_path)
    assert family(found) == ALL - {"libnss_compat.so.2"}
    assert any("libnss_compat.so.2 can't be used" in note for note in found.notes)


def test_what_is_said_of_static_programs_and_executable_stacks(tmp_path: Path) -> None:
    stack = h.executable_stack()
    tree = {**image(), "/usr/lib/libold.so.1": stack, "/usr/bin/static": h.static_with_nss()}
    tree["/sbin/ldconfig"] = h.static_with_nss()
    found = inject(host(), tree, tmp_path)
    (one,) = [note for note in found.notes if note.startswith("static programs that use NSS")]
    assert one.endswith(": /usr/bin/static")
    (one,) = [note for note in found.notes if note.startswith("libraries with an executable")]
    assert one.endswith(": /usr/lib/libold.so.1")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({LIBC: "nowhere"}, f"the image's {LIBC} leads to {ARCH}/nowhere, which is no library"),
        ({LIBC: "libc.so.6"}, f"the image's {LIBC} is a link in a circle"),
        ({f"{ARCH}/libm.so.6": b"\x7fELF\x02\x01"}, f"the image's {ARCH}/libm.so.6 is damaged"),
        ({LIBC: b"\x7fELF\x02\x01"}, f"the image's {LIBC} is damaged"),
        ({LIBC: WHOLE[: len(WHOLE) // 2]}, f"the image's {LIBC} is damaged"),
        ({f"{ARCH}/libdl.so.2": "a", f"{ARCH}/a": "libdl.so.2"}, "is a link in a circle"),
        ({f"{ARCH}/librt.so.1": "."}, f"{ARCH}/librt.so.1 leads to {ARCH}, which is no library"),
        (
            {"/usr" + h.LOADER: "gone"},
            "/lib64/ld-linux-x86-64.so.2 leads to /usr/lib64/gone",
        ),
    ],
)
def test_a_copy_that_can_not_be_resolved(change: h.Tree, why: str, tmp_path: Path) -> None:
    tree = {**image(), **change}
    # Another libc.so.6 lets the image have a glibc at all.
    tree["/usr/lib/libc.so.6"] = WHOLE
    assert why in refused(host(), tree, tmp_path)


def test_a_directory_in_the_place_of_a_file(tmp_path: Path) -> None:
    """It is no library: the image has no such one, and nothing is mounted over the directory."""
    tree = image()
    del tree[LIBC]
    tree[f"{LIBC}/inside"] = b""
    with pytest.raises(UdiError, match="the image has no glibc, which the host's MPI needs"):
        inject(host(), tree, tmp_path / "libc")
    tree = image()
    del tree[f"{ARCH}/libm.so.6"]
    tree[f"{ARCH}/libm.so.6/inside"] = b""
    found = over(inject(host(), tree, tmp_path / "libm"))
    assert LIBC in found and f"{ARCH}/libm.so.6" not in found


def test_a_library_of_another_class_is_other_programs(tmp_path: Path) -> None:
    """ld.so passes over it, as for the 32-bit programs of an image of two kinds."""
    places = [f"{ARCH}/libm.so.6", "/usr/lib32/libc.so.6"]
    found = over(inject(host(), {**image(), **dict.fromkeys(places, OTHER_CLASS)}, tmp_path))
    assert LIBC in found and not set(places) & set(found)


def test_copies_by_the_hundred(tmp_path: Path) -> None:
    libm = h.library("libm.so.6", defines=("GLIBC_2.2.5",))
    tree = image()
    tree |= {f"{ARCH}/glibc-hwcaps/v{n}/libm.so.6": libm for n in range(100)}
    assert len(over(inject(host(), tree, tmp_path / "many"))) > 100
    tree |= {f"{ARCH}/glibc-hwcaps/v{n}/libm.so.6": libm for n in range(300)}
    assert "is one of more than 200 copies" in refused(host(), tree, tmp_path / "more")


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (
            image("2.36", ("GLIBC_ABI_X",)),
            f"the host's libc.so.6 has no GLIBC_ABI_X, which the image's {LIBC} has",
        ),
        (
            {
                **image(),
                f"{ARCH}/libm.so.6": h.library("libm.so.6", defines=("GLIBC_2.2.5", "GLIBC_2.99")),
            },
            f"the host's libm.so.6 has no GLIBC_2.99, which the image's {ARCH}/libm.so.6 has",
        ),
    ],
)
def test_names_that_the_host_has_not(own: h.Tree, why: str, tmp_path: Path) -> None:
    assert refused(host(), own, tmp_path) == why


@pytest.mark.parametrize("gone", ["libc.so.6", "libresolv.so.2", "ld-linux-x86-64.so.2"])
def test_a_host_without_a_needed_file(gone: str, tmp_path: Path) -> None:
    tree = host()
    del tree[f"{ARCH}/{gone}"]
    assert refused(tree, image(), tmp_path).startswith("the host has no ")


def test_a_host_that_is_no_newer(tmp_path: Path) -> None:
    """Its MPI needs what its own libc hasn't: of another system. Nothing would be won."""
    assert refused(host("2.31"), image(), tmp_path).startswith(
        "the host's libc.so.6 has no GLIBC_2.36"
    )


def test_libraries_of_another_folder_are_not_the_hosts(tmp_path: Path) -> None:
    """A libc of LD_LIBRARY_PATH (a sysroot, conda's) is not what the host runs on."""
    tree = {**host(), "/sysroot/libc.so.6": h.library("libc.so.6", defines=("GLIBC_2.99",))}
    env = {"PATH": "/opt/mpich/bin", "LD_LIBRARY_PATH": "/sysroot"}
    found = inject(tree, image(), tmp_path, environ=env)
    assert sources(found)[LIBC] == str(tmp_path / "host") + LIBC


def test_a_program_with_a_loader_of_its_own(tmp_path: Path) -> None:
    """Refused where MPI would go into it; others of the kind stay as they are."""
    loader = "/nix/store/x/ld-linux-x86-64.so.2"
    own = h.with_loader(h.program(("libmpich.so.12",)), loader)
    why = refused(host(), {**image(), "/app/run": own}, tmp_path / "mpi")
    assert why == f"the image's /app/run runs by a loader of its own, {loader}"
    tool = h.with_loader(h.library(), "/lib/klibc.so")
    found = inject(host(), {**image(), "/usr/bin/tool": tool}, tmp_path / "tool")
    assert "/usr/bin/tool keeps a C library of its own" in found.notes
    same = h.with_loader(h.program(("libmpich.so.12",)), f"{ARCH}/ld-linux-x86-64.so.2")
    assert over(inject(host(), {**image(), "/app/run": same}, tmp_path / "same"))


def test_facts_of_before(tmp_path: Path) -> None:
    facts = h.facts(image())
    del facts["glibc"]
    root = h.write(host(), tmp_path / "host")
    with pytest.raises(UdiError, match=r"nothing was noted .*`udi pull --force` notes"):
        planner.inject("", "", facts, {"PATH": "/opt/mpich/bin"}, (), root)
    root = h.write(h.mpich_host("2.36"), tmp_path / "old")
    assert planner.inject("", "", facts, {"PATH": "/opt/mpich/bin"}, (), root).steps


def test_never(tmp_path: Path) -> None:
    with pytest.raises(UdiError) as caught:
        inject(host(), image(), tmp_path, glibc="never")
    assert caught.value.message.endswith("and the image's glibc has GLIBC_2.36")
    assert caught.value.hint.startswith("--mpi-glibc=auto brings the host's along, ")
