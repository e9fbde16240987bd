"""The grammar of volumes, and what is refused and why."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.host.facts import look
from rootless_udi.plan import sizes, volumes
from rootless_udi.plan.volumes import PerNodeCache, Volume, parse

G = 1024**3


def render(found: list[Volume] | tuple[Volume, ...]) -> str:
    """Return text that `parse` reads back to equal volumes (origins aside)."""
    return ";".join(":".join(_rendered(volume)) for volume in found)


def _rendered(volume: Volume) -> list[str]:
    words = [volumes.quote(volume.source), volumes.quote(volume.destination), *volume.options]
    if volume.cache is not None:
        cache = volume.cache
        block = sizes.show(cache.block) if cache.block else ""
        pairs = [f"size={sizes.show(cache.size)}"]
        for key, value in (("bs", block), ("fs", cache.fs), ("method", cache.method)):
            pairs += [f"{key}={value}"] if value else []
        words.append(f"perNodeCache={','.join(pairs)}")
    return words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a:/b", [Volume("/a", "/b")]),
        ("/a:/b:ro", [Volume("/a", "/b", ("ro",))]),
        ("/a:/b:rw:rec:slave", [Volume("/a", "/b", ("rw", "rec", "slave"))]),
        ("/a:/b:RO:ro", [Volume("/a", "/b", ("ro",))]),
        ("/a:/b;/c:/d:ro", [Volume("/a", "/b"), Volume("/c", "/d", ("ro",))]),
        ("/a:/b;;/c:/d;", [Volume("/a", "/b"), Volume("/c", "/d")]),
        ("", []),
        ("//a/./b/://c//", [Volume("/a/b", "/c")]),
        ("/:/host", [Volume("/", "/host")]),
        ("/a b@=,+'*:/c d", [Volume("/a b@=,+'*", "/c d")]),
        ('"/a:b;c":/d', [Volume("/a:b;c", "/d")]),
        ('/a":"b:/d', [Volume("/a:b", "/d")]),
        (r"/a\:b\;c\"d\\e:/f", [Volume('/a:b;c"d\\e', "/f")]),
        (r'"/a\"b\\c":/d', [Volume('/a"b\\c', "/d")]),
        ('"/two\nlines":/d', [Volume("/two\nlines", "/d")]),
        ("/two\\\nlines:/d", [Volume("/two\nlines", "/d")]),
        ("/etc:/etcfoo", [Volume("/etc", "/etcfoo")]),
        ("/a:/variables", [Volume("/a", "/variables")]),
        ("/a:/var/tmp", [Volume("/a", "/var/tmp")]),
        ("/a:/var/tmp/x", [Volume("/a", "/var/tmp/x")]),
        ("/a:/opt/foo", [Volume("/a", "/opt/foo")]),
        ("/a:/b..c", [Volume("/a", "/b..c")]),
        ("/a:/data;/b:/data/in/depth", [Volume("/a", "/data"), Volume("/b", "/data/in/depth")]),
        ("/s:/c:perNodeCache=size=1G", [Volume("/s", "/c", (), PerNodeCache(G))]),
        (
            "/s:/c:rw:pernodecache=SIZE=1.5G,bs=4k,fs=ext4,method=file",
            [Volume("/s", "/c", ("rw",), PerNodeCache(3 * G // 2, 4096, "ext4", "file"))],
        ),
        (
            "/s:/c:perNodeCache=size=1G,fs=xfs,method=loop",
            [Volume("/s", "/c", (), PerNodeCache(G, 0, "", "file"))],
        ),
        ("/s:/c:perNodeCache=size=1G,fs=xfs", [Volume("/s", "/c", (), PerNodeCache(G))]),
        (
            "/s:/c:perNodeCache=size=1G,fs=tmpfs",
            [Volume("/s", "/c", (), PerNodeCache(G, 0, "", "tmpfs"))],
        ),
        (
            "/s:/c:perNodeCache=fs=ext4,size=1G",
            [Volume("/s", "/c", (), PerNodeCache(G, 0, "ext4", "file"))],
        ),
    ],
)
def test_means(text: str, expected: list[Volume]) -> None:
    assert list(parse(text)) == expected
    assert list(parse(render(expected))) == expected


def test_site_grammar() -> None:
    found = parse("/global;/etc/x:/etc/opt/x:ro", site=True, origin="siteFs")
    assert found == (
        Volume("/global", "/global", origin="siteFs"),
        Volume("/etc/x", "/etc/opt/x", ("ro",), origin="siteFs"),
    )


@pytest.mark.parametrize("where", ["/etc", "/etc/passwd", "/var", "/opt", "/"])
def test_not_even_the_site_mounts_on(where: str) -> None:
    with pytest.raises(UdiError, match="would hide what every container is made of"):
        parse(f"/a:{where}", site=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("/etc", "--volume /etc: destination /etc is not allowed"),
        ("a:/b", "source a is not absolute"),
        (" /a:/b", "source ' /a' is not absolute"),
        ("/a:b", "destination b is not absolute"),
        (":/scratch", "source is empty"),
        ("/a:", "destination is empty"),
        ("/a::ro", "destination is empty"),
        ("/a:/b:", "unknown flag ''"),
        ("/../a:/b", "source /../a has a '..'"),
        ("/a:/b/..", "destination /b/.. has a '..'"),
        ("/a\0b:/c", "has a NUL character"),
        ("/a\n:/c", "a bare newline"),
        (r"/a\nb:/c", "a backslash before n means nothing"),
        ("/a:/c\\", "a backslash before the end means nothing"),
        ('"/a:/c', "a double quote is not closed"),
        ("/a:/b:nosuid", "unknown flag nosuid"),
        ("/a:/b:ro,rec", "unknown flag ro,rec"),
        ("/a:/b:ro=1", "unknown flag ro=1"),
        ("/a:/b:ro:rw", "ro and rw contradict each other"),
        ("/a:/b:slave:private", "slave and private contradict each other"),
        ("/a:/", "destination / is not allowed: it is the image itself"),
        ("/a:/.", "destination / is not allowed"),
        ("/a:/etc", "destination /etc is not allowed: the container's /etc holds"),
        ("/a:/etc/passwd", "destination /etc/passwd (inside /etc) is not allowed"),
        ("/a://etc", "destination /etc is not allowed"),
        ("/a:/var", "destination /var is not allowed"),
        ("/a:/var/lib", "destination /var/lib (inside /var) is not allowed"),
        ("/a:/var/tmpx", "(inside /var) is not allowed"),
        ("/a:/opt", "destination /opt is not allowed: it would hide"),
        ("/a:/opt/udiImage/modules", "(inside /opt/udiImage) is not allowed"),
        ("/a:/dev/shm", "(inside /dev) is not allowed: devices are the host's"),
        ("/a:/proc", "destination /proc is not allowed"),
        ("/a:/sys/fs", "(inside /sys) is not allowed"),
        ("/a:/x;/b:/x/", "two volumes on /x: /a (--volume) and /b"),
        ("/a:/x:perNodeCache", "perNodeCache needs a size"),
        ("/a:/x:perNodeCache=", "perNodeCache needs a size"),
        ("/a:/x:perNodeCache=bs=1M", "perNodeCache needs a size"),
        ("/a:/x:perNodeCache=size=0", "perNodeCache: size=0: less than one byte"),
        ("/a:/x:perNodeCache=size=-1", "size=-1: a size can't be negative"),
        ("/a:/x:perNodeCache=size=1e9P", "size=1e9P: more than the largest file"),
        ("/a:/x:perNodeCache=bytes=1G", "perNodeCache has no bytes"),
        ("/a:/x:perNodeCache=size=1G,size=2G", "size is given twice"),
        ("/a:/x:perNodeCache=size=1G:perNodeCache=size=1G", "perNodeCache is given twice"),
        ("/a:/x:perNodeCache=size=1M,bs=1G", "bs=1G is more than size=1M"),
        ("/a:/x:perNodeCache=size=1G,fs=zfs", "unknown fs zfs"),
        ("/a:/x:perNodeCache=size=1G,method=nfs", "unknown method nfs"),
        ("/a:/x:perNodeCache=size=1G,fs=ext4,method=tmpfs", "method=tmpfs makes no ext4"),
        ("/a:/x:ro:perNodeCache=size=1G", "perNodeCache with ro"),
        ("/a:/x:perNodeCache=size=1G;/b:/x/y/z", "/x/y/z is inside the perNodeCache /x"),
        ("/b:/x/y;/a:/x:perNodeCache=size=1G", "/x/y is inside the perNodeCache /x"),
        ("/a:/" + "b/" * 2048, "destination is longer than 4095 bytes"),
        ("/" + "a" * 256 + ":/b", "source has a name of more than 255 bytes"),
        ("/a:/" + "é" * 128, "destination has a name of more than 255 bytes"),
        ("/\ud800:/b", "a character that no file name can hold"),
    ],
)
def test_refused(text: str, why: str) -> None:
    with pytest.raises(UdiError) as caught:
        parse(text)
    assert why in caught.value.message


def test_refusals_say_what_to_do() -> None:
    with pytest.raises(UdiError) as caught:
        parse("/a:/b:nosuid")
    assert "ro, rw, rec, slave, private, sqfs, bind and perNodeCache=size=" in caught.value.hint


def test_longest_path_is_accepted() -> None:
    path = "/" + "/".join(["n" * 254] * 16) + "/" + "n" * 14
    assert len(path) == 4095
    assert parse(f"/a:{path}")[0].destination == path


def test_mount_order_is_parents_first() -> None:
    found = parse("/a:/x/y/z;/b:/x;/c:/q")
    assert [v.destination for v in volumes.together(found)] == ["/x", "/q", "/x/y/z"]


@given(st.text(alphabet=st.sampled_from('/ab.:;"\\\n =,~'), max_size=40) | st.text(max_size=40))
def test_any_text_is_volumes_or_refused(text: str) -> None:
    for site in (False, True):
        try:
            found = parse(text, site=site)
        except UdiError:
            continue
        assert parse(render(found), site=site) == found


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
PATHS = st.lists(
    NAMES.filter(lambda n: n not in (".", "..") and len(n.encode()) < 256), min_size=1, max_size=3
).map(lambda parts: "/" + "/".join(parts))


@given(PATHS, PATHS, st.sets(st.sampled_from(["ro", "rec", "slave"])))
def test_every_name_can_be_written(source: str, below: str, options: set[str]) -> None:
    volume = Volume(source, "/data" + below, tuple(sorted(options)))
    assert parse(render([volume])) == (volume,)


def test_sources_are_followed(tmp_path: Path) -> None:
    """What may be mounted, and what is in the way; the planner refuses the latter."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("dir")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "closed").mkdir(0o000)
    names = ("dir", "file", "link", "gone", "file/in", "loop", "fifo", "closed/in")
    found = look(f"{tmp_path}/{name}" for name in names)
    kinds = [found[f"{tmp_path}/{name}"].kind for name in names]
    assert kinds[:5] == ["directory", "file", "directory", "missing", "missing"]
    assert kinds[5:] == ["failed", "special", "denied"]
    assert found[f"{tmp_path}/loop"].why == "Too many levels of symbolic links"
    assert found[f"{tmp_path}/link"].real == os.path.realpath(tmp_path / "dir")
    assert look(["/dev/null"])["/dev/null"].kind == "device"
