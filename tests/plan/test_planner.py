"""Plans are data: golden files, and what a plan refuses. UDI_GOLDEN=write writes the files anew."""

import os
import re
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.launch import explain
from rootless_udi.plan import planner
from rootless_udi.plan.facts import Host, HostPath
from rootless_udi.plan.image import Image, Root
from rootless_udi.plan.options import Request
from rootless_udi.plan.site import MountRow, Site
from rootless_udi.plan.steps import Directory, Env, Hook, Injection, Mount, Symlink
from rootless_udi.plan.volumes import parse
from tests.kit import places, plans

pytestmark = pytest.mark.alike

GOLDEN = places.GOLDEN / "plan"

HOST = Host(
    uid=1000,
    gid=100,
    user="ada",
    gecos="Ada: L",
    home="/home/ada",
    shell="/bin/zsh",
    group="users",
    fuse=True,
    overlay=True,
    squashfuse="/usr/bin/squashfuse_ll",
    unsquashfs="",
    machine="x86_64",
)
FACTS = {
    "mount_points": True,
    "env": ["PATH=/usr/bin", "EMPTY=", "BARE"],
    "entrypoint": ["/init"],
    "cmd": ["run"],
    "workdir": "/srv",
}
IMAGE = Image("app:1", "sha256:" + "a" * 64, "/store/a.sqfs", "/store/dirs/a", FACTS, "zstd")
UDI = Root("udi", "/store/a.sqfs", reason="our own server")
LL = Root("squashfuse_ll", "/store/a.sqfs", "/usr/bin/squashfuse_ll", "a C program")


class Anything(dict[str, HostPath]):
    """A host where every path is a directory, but for those given."""

    def __missing__(self, path: str) -> HostPath:
        return HostPath("directory", path)


def build(**changes: Any) -> planner.Plan:
    """Return the plan of `udi-run app:1` with some arguments changed."""
    arguments: dict[str, Any] = {
        "request": Request(image="app:1"),
        "site": Site(),
        "host": HOST,
        "image": IMAGE,
        "root": LL,
        "sources": Anything({"/etc/resolv.conf": HostPath("file", "/run/resolve/stub")}),
    }
    return planner.build(**{**arguments, **changes})


SITE = Site(
    mounts=(
        MountRow("/proc", "/proc", ("rec",)),
        MountRow("/global/home", "/home", ("slave",), True, "/etc/rootless_udi/udi.toml:4"),
        MountRow("/gone", "/gone", (), False, "/etc/rootless_udi/udi.toml:9"),
    ),
    environment=(Env("prepend", "PATH", "/site/bin", "/etc/rootless_udi/udi.toml:12"),),
)
MODULE = Injection(
    steps=(
        Directory("/opt/udiImage/modules/x", reason="module x"),
        Mount("/opt/udiImage/modules/x/libx.so.1", "/site/libx.so.1", options=("ro",), reason="x"),
        Symlink("/opt/udiImage/modules/x/libx.so", "libx.so.1", reason="module x"),
        Mount("/usr/lib/liby.so.2", "/site/liby.so.2", reason="module x", over=True),
    ),
    environment=(Env("append", "LD_LIBRARY_PATH", "/opt/udiImage/modules/x", "module x"),),
    notes=("x: y",),
)

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "own-server": {"root": UDI},
    "writable": {"request": Request(image="app:1", writable=True)},
    "foreign": {"image": Image("./x.sqfs", "", "/x.sqfs", "", {}, "gzip")},
    "directory": {
        "image": Image("./tree", "", "", "/tree", {}),
        "root": Root("directory", "/tree", reason="the image is a directory"),
    },
    "volumes": {"volumes": parse("/scratch:/data:ro;/scratch/x:/tmp/deep/x:slave")},
    "new-mount-point": {"volumes": parse("/scratch:/new/place")},
    "site": {"site": SITE, "sources": Anything({"/gone": HostPath("missing", "/gone")})},
    "module": {"injections": (MODULE,), "hooks": (Hook(("/bin/sh", "-c", "true"), 5.0, "x"),)},
    "old-kernel": {"host": HOST.replace(overlay=False)},
    "underlay": {
        "host": HOST.replace(overlay=False),
        "volumes": parse("/scratch:/new/place"),
    },
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_golden(name: str) -> None:
    made = build(**CASES[name])
    text = explain.as_json(made)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("UDI_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
    assert plans.from_json(text) == made
    assert explain.as_text(made).count("\n") > 15
    for width in (40, 80, 120):
        lines = explain.fitted(made, width).splitlines()
        assert max(map(len, lines)) <= width
        words = "".join("".join(lines).split())
        assert all("".join(step.reason.split()) in words for step in made.steps)
        coloured = explain.fitted(made, width, colours=True)
        assert re.sub("\x1b\\[[0-9]*m", "", coloured).split() == "\n".join(lines).split()


OLD = HOST.replace(overlay=False)
UNION = OLD.replace(fuse_overlayfs="/usr/bin/fuse-overlayfs")


def test_a_layer_only_where_something_asks_for_it() -> None:
    assert build().layer.kind == "none"
    assert build(**CASES["module"]).layer.kind == "none"
    assert build(volumes=parse("/a:/tmp/deep/er")).layer.kind == "none"
    assert "/new/place is not in the image" in build(**CASES["new-mount-point"]).layer.reason
    assert "not made by udi pull" in build(**CASES["foreign"]).layer.reason
    own = build(root=UDI).layer
    assert "asks the image server nothing" in own.reason and own.instead == "none"
    assert build(root=UDI, host=OLD).layer.kind == "none"


def request(layer: str, writable: bool = False) -> Request:
    return Request(image="app:1", layer=layer, writable=writable)


@pytest.mark.parametrize("case", ["foreign", "new-mount-point"])
def test_without_overlay_what_is_missing_is_covered(case: str) -> None:
    """On an old kernel at once, on others where the mount is refused, or by name."""
    made = build(**{**CASES[case], "host": OLD}).layer
    assert made.kind == "underlay" and made.reason.endswith(
        "lets no ordinary user mount an overlay"
    )
    made = build(**CASES[case]).layer
    assert (made.kind, made.instead) == ("overlay", "underlay")
    made = build(**{**CASES[case], "request": request("underlay")}).layer
    assert made.kind == "underlay" and made.reason.endswith("; --layer=underlay")
    made = build(**{**CASES[case], "request": request("overlay")}).layer
    assert (made.kind, made.instead) == ("overlay", "")


def test_writable_without_overlay_is_another_programs_or_refused() -> None:
    for host, asked in ((OLD, "auto"), (HOST, "underlay")):
        with pytest.raises(UdiError, match="fuse-overlayfs is not installed"):
            build(request=request(asked, True), host=host)
        union = host.replace(fuse_overlayfs="/usr/bin/fuse-overlayfs")
        made = build(request=request(asked, True), host=union).layer
        assert (made.kind, made.program) == ("fuse-overlayfs", "/usr/bin/fuse-overlayfs")
    made = build(**CASES["writable"]).layer
    assert (made.kind, made.instead) == ("overlay", "")
    made = build(**CASES["writable"], host=UNION.replace(overlay=True)).layer
    assert (made.kind, made.instead) == ("overlay", "fuse-overlayfs")
    made = build(request=request("overlay", True), host=UNION).layer
    assert (made.kind, made.instead) == ("overlay", "")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("missing", "no such file or directory on the host"),
        ("denied", "permission denied"),
        ("special", "it is a FIFO or a socket"),
    ],
)
def test_required_sources(kind: str, why: str) -> None:
    with pytest.raises(UdiError, match=why) as caught:
        build(volumes=parse("/x:/data"), sources=Anything({"/x": HostPath(kind, "/x")}))
    assert "--volume" in caught.value.hint


LIBC = Injection(
    (
        Mount("/lib/libc.so.6", "/host/libc.so.6", over=True),
        Mount("/lib/libm.so.6", "/host/libm.so.6", over=True),
    ),
    together=("/lib/libc.so.6", "/lib/libm.so.6"),
)


def test_files_that_work_together_or_not_at_all() -> None:
    """One that vanished from the host, a volume over one of them or over their folder."""
    assert build(injections=(LIBC,), volumes=parse("/x:/library"))
    gone = Anything({"/host/libm.so.6": HostPath("missing", "/host/libm.so.6")})
    with pytest.raises(UdiError, match=r"mounting /host/libm.so.6 on /lib/libm.so.6 failed: no"):
        build(injections=(LIBC,), sources=gone)
    for place in ("/lib", "/lib/libm.so.6"):
        with pytest.raises(UdiError, match=f"volume {place}: it covers /lib/lib[cm].so.6"):
            build(injections=(LIBC,), volumes=parse(f"/x:{place}"))
    # A mount of the site's, of a module, of CDI: before or after, it changes what was known.
    site = Site(mounts=(MountRow("/x", "/lib"),))
    with pytest.raises(UdiError, match=r"mount /lib \(.*\): it covers /lib/lib[cm].so.6"):
        build(injections=(LIBC,), site=site)
    other = Injection((Mount("/lib", "/x", reason="module m"),))
    for injections in ((LIBC, other), (other, LIBC)):
        with pytest.raises(UdiError, match=r"mount /lib \(module m\): it covers /lib/lib[cm].so.6"):
            build(injections=injections)
    assert build(injections=(LIBC, Injection((Mount("/lib/other", "/x"),))))


def test_a_source_that_answers_with_an_error_is_named() -> None:
    for why in ("Transport endpoint is not connected", "Stale file handle", "Input/output error"):
        sources = Anything(
            {"/gone": HostPath("failed", "/gone", why), "/x": HostPath("failed", "", why)}
        )
        made = build(site=SITE, sources=sources)
        assert made.warnings == (
            f"mounting /gone on /gone failed: {why} on the host; it is left out (required = false)",
        )
        with pytest.raises(UdiError, match=f"mounting /x on /data failed: {why} on the host"):
            build(volumes=parse("/x:/data"), sources=sources)


def test_accounts_cannot_break_a_line() -> None:
    made = build(host=HOST.replace(user="a\nroot::0", gecos="x:y"))
    passwd = next(s for s in made.steps if s.target == "/etc/passwd")
    assert "a?root??0:x:1000:100:x?y:" in getattr(passwd, "content", "")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"type": "Plan"}', '{"type": "Nope"}', "nope"])
def test_what_is_no_plan(text: str) -> None:
    with pytest.raises(ValueError):
        plans.from_json(text)
