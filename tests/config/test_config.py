"""Configuration: merged from files, cached, shown, checked; each problem with file and line."""

import json
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.config import compiled, files, merge, schema, show, tomllines
from rootless_udi.config import load as config_load
from rootless_udi.plan import modules
from rootless_udi.plan import site as plan_site
from rootless_udi.plan.site import MountRow, Site
from rootless_udi.plan.steps import Env
from tests.kit import places
from tests.kit.places import TREE

GOLDEN = places.GOLDEN / "config"


class Place:
    """A site directory, a home, and the environment that leads to them."""

    def __init__(self, root: Path) -> None:
        self.site, self.home = root / "site", root / "home"
        for folder in (self.site / "conf.d", self.site / "modules.d", self.user / "modules.d"):
            folder.mkdir(parents=True)
        for folder in (root, *root.rglob("*")):
            folder.chmod(0o755)
        self.environ = {"UDI_SITE_DIR": str(self.site), "HOME": str(self.home)}

    @property
    def user(self) -> Path:
        return self.home / ".config/rootless_udi"

    @property
    def copies(self) -> list[Path]:
        return sorted((self.home / ".cache/rootless_udi").glob("config-*.json"))

    def write(self, name: str, text: str) -> Path:
        """Write a file of the site ("site/...") or the user ("user/...")."""
        place, _, rest = name.partition("/")
        path = (self.site if place == "site" else self.user) / rest
        path.write_text(text)
        path.chmod(0o644)
        return path

    def load(self) -> Site:
        return config_load.load(self.environ)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    os.umask(0o022)
    return Place(tmp_path)


def test_without_any_file(tmp_path: Path) -> None:
    assert config_load.load({"UDI_SITE_DIR": str(tmp_path / "none")}) == Site()
    site = config_load.load({"UDI_SITE_DIR": str(tmp_path / "none"), "HOME": str(tmp_path)})
    assert [row.destination for row in site.mounts] == ["/proc", "/sys", "/dev", "/tmp", "/var/tmp"]
    assert site.origin("cache.method") == "built-in default"


def test_files_merge_in_order(place: Place, tmp_path: Path) -> None:
    site = place.write(
        "site/udi.toml",
        """
[image]
registry = "one.example"
pull = "never"

[store]
site = ["/opt/images"]

[[mount]]
source = "/global"
options = ["rec", "slave"]

[[mount]]
source = "/home"
required = false

[env]
set = { A = "1", B = "2" }
prepend = { PATH = "/site/bin" }

[registry."docker.io"]
mirrors = ["mirror.example"]
""",
    )
    extra = place.write("site/conf.d/10-more.toml", '[image]\nregistry = "two.example"\n')
    user = place.write(
        "user/config.toml",
        """
[image]
registry = "three.example"
[store]
site = []
[[mount]]
destination = "/home"
enabled = false
[env]
unset = ["B"]
[registry."docker.io"]
insecure = true
""",
    )
    last = tmp_path / "last.toml"
    last.write_text('[image]\nlevel = 9\n[cache]\nlimit = "10G"\n')
    place.environ["UDI_CONFIG"] = str(last)
    merged = place.load()
    assert merged.registry == "three.example"
    assert merged.origin("image.registry") == f"{user}:3"
    assert (merged.pull, merged.origin("image.pull")) == ("never", f"{site}:4")
    assert merged.site_stores == ()
    assert merged.compression_level == 9
    assert merged.cache_limit == 10 * 1024**3
    assert merged.mirrors == (("docker.io", ("mirror.example",)),)
    assert merged.insecure == ("docker.io",)
    assert merged.mounts[-1] == MountRow("/global", "/global", ("rec", "slave"), True, f"{site}:9")
    assert "/home" not in [row.destination for row in merged.mounts]
    assert merged.environment == (
        Env("set", "A", "1", f"{site}:18"),
        Env("set", "B", "2", f"{site}:18"),
        Env("prepend", "PATH", "/site/bin", f"{site}:19"),
        Env("unset", "B", "", f"{user}:10"),
    )
    place.environ.pop("UDI_CONFIG")
    (place.user / "config.toml").unlink()
    again = place.load()
    assert (again.registry, again.origin("image.registry")) == ("two.example", f"{extra}:2")
    assert again.mounts[-1].destination == "/home"


def test_a_later_row_takes_the_place_of_a_default_one(place: Place) -> None:
    place.write("site/udi.toml", '[[mount]]\nsource="/local/tmp"\ndestination="/tmp"\n')
    rows = {row.destination: row.source for row in place.load().mounts}
    assert rows["/tmp"] == "/local/tmp"
    assert list(rows) == ["/proc", "/sys", "/dev", "/var/tmp", "/tmp"]


def test_the_smaller_cache_limit_counts(place: Place) -> None:
    place.write("site/udi.toml", '[cache]\nlimit = "10G"\n')
    for text, limit in (("100G", 10), ("0", 10), ("1G", 1)):
        place.write("user/config.toml", f'[cache]\nlimit = "{text}"\n')
        assert place.load().cache_limit == limit * 1024**3


def test_variables_in_paths(place: Place) -> None:
    place.write(
        "site/udi.toml",
        """
[store]
path = "$SCRATCH/images"
site = ["${SHARED}/images", "/opt/$UID"]
[[mount]]
source = "$SCRATCH"
required = false
""",
    )
    site = place.load()
    assert (site.store, site.site_stores) == ("", (f"/opt/{os.getuid()}",))
    assert site.mounts == plan_site.DEFAULT_MOUNTS
    place.environ |= {"SCRATCH": "/s/me", "SHARED": "/shared"}
    site = place.load()
    assert (site.store, site.site_stores[0]) == ("/s/me/images", "/shared/images")
    assert site.mounts[-1].source == site.mounts[-1].destination == "/s/me"


def test_a_required_mount_of_an_unset_variable(place: Place) -> None:
    path = place.write("site/udi.toml", '[[mount]]\nsource = "$SCRATCH"\n')
    with pytest.raises(UdiError) as caught:
        place.load()
    assert f"mount $SCRATCH on $SCRATCH ({path}:1): a variable is unset" in caught.value.message


def test_mounts_that_the_host_makes_later(place: Place) -> None:
    place.write(
        "site/udi.toml",
        '[container]\npropagation = "slave"\n[[mount]]\nsource="/a"\noptions=["private"]\n',
    )
    site = place.load()
    assert site.mounts[0].options == ("rec", "slave")
    assert site.mounts[-1].options == ("private",)


def test_mpi_profiles(place: Place) -> None:
    (place.site / "mpi.d").mkdir(mode=0o755)
    place.write("site/udi.toml", '[mpi.one]\nfamily = "mpich"\nprefix = "/opt/one"\n')
    place.write("site/mpi.d/two.toml", 'family = "openmpi"\n[set]\nA = "1"\n')
    site = place.load()
    assert site.mpi == {
        "one": {"family": "mpich", "prefix": "/opt/one"},
        "two": {"family": "openmpi", "set": {"A": "1"}},
    }
    assert site.origin("mpi.two") == f"{place.site}/mpi.d/two.toml:1"
    assert place.load().mpi == site.mpi
    path = place.write("site/udi.toml", '[mpi.one]\n\nfamily = "lam"\n')
    with pytest.raises(UdiError, match=f"{path}:3: mpi.one.family: .*unknown family lam"):
        place.load()


def test_etc(place: Place) -> None:
    place.write(
        "site/udi.toml",
        '[etc]\nhost = ["hosts", "/etc/services"]\nfiles = { "nsswitch.conf" = "/site/nss" }\n',
    )
    site = place.load()
    assert site.etc == (
        ("hosts", "/etc/hosts"),
        ("services", "/etc/services"),
        ("nsswitch.conf", "/site/nss"),
    )


class TestCopy:
    """The flattened copy: used, and never used wrongly."""

    def spoil(self, copy: Path) -> None:
        """Change what a copy says, so that its use shows."""
        document = json.loads(copy.read_text())
        document["site"]["registry"] = "copy.example"
        info = copy.stat()
        copy.write_text(json.dumps(document))
        os.utime(copy, ns=(info.st_atime_ns, info.st_mtime_ns + 10 * 10**9))

    def test_is_used_while_nothing_changes(self, place: Place) -> None:
        place.write("site/udi.toml", '[image]\nregistry = "toml.example"\n')
        assert place.load().registry == "toml.example"
        (copy,) = place.copies
        assert copy.stat().st_mode & 0o777 == 0o600
        self.spoil(copy)
        assert place.load().registry == "copy.example"

    def test_is_good_on_another_node_with_the_same_text(self, place: Place) -> None:
        path = place.write("site/udi.toml", '[image]\nregistry = "toml.example"\n')
        place.load()
        self.spoil(place.copies[0])
        os.utime(path, ns=(1, 1))
        assert place.load().registry == "copy.example"

    @pytest.mark.parametrize("change", ["text", "more", "module", "gone", "broken", "odd", "other"])
    def test_is_left(self, place: Place, change: str) -> None:
        path = place.write("site/udi.toml", '[image]\nregistry = "toml.example"\n')
        place.write("site/modules.d/a.toml", "")
        place.load()
        (copy,) = place.copies
        self.spoil(copy)
        if change == "text":
            path.write_text('[image]\nregistry = "toml.EXAMPLE"\n')
        elif change == "more":
            place.write("site/conf.d/b.toml", "")
        elif change == "module":
            place.write("site/modules.d/b.toml", "")
        elif change == "gone":
            (place.site / "modules.d/a.toml").unlink()
        elif change == "broken":
            copy.write_text(copy.read_text()[:-20])
        elif change == "odd":
            copy.write_text('{"format": 1, "files": [[]], "site": 3}')
        elif change == "other":
            copy.chmod(0o666)
        assert place.load().registry.lower() == "toml.example"

    def test_a_change_within_the_clock_s_tick_is_seen(self, place: Place) -> None:
        path = place.write("site/udi.toml", '[image]\nregistry = "one.example"\n')
        place.load()
        before = path.stat()
        path.write_text('[image]\nregistry = "two.example"\n')
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert place.load().registry == "two.example"

    def test_nothing_needs_it(self, place: Place) -> None:
        place.write("site/udi.toml", '[image]\nregistry = "toml.example"\n')
        (place.home / ".cache").write_text("a file")
        assert place.load().registry == "toml.example"
        place.environ.pop("HOME")
        assert place.load().registry == "toml.example"

    def test_of_the_site(self, place: Place) -> None:
        place.write("site/udi.toml", '[image]\nregistry = "toml.example"\n')
        path = Path(compiled.compile_site(place.environ))
        assert path == place.site / "udi.cache"
        self.spoil(path)
        assert place.load().registry == "copy.example"
        assert place.copies == []
        path.chmod(0o666)
        assert place.load().registry == "toml.example"

    def test_nothing_to_compile(self, place: Place) -> None:
        with pytest.raises(UdiError, match="no configuration in"):
            compiled.compile_site(place.environ)

    def test_compile_by_another(self, place: Place) -> None:
        place.write("site/udi.toml", "")
        place.site.chmod(0o555)
        with pytest.raises(UdiError, match=r"udi\.cache failed: Permission denied"):
            compiled.compile_site(place.environ)


@pytest.mark.parametrize("name", ["site/udi.toml", "site/modules.d/a.toml", "user/config.toml"])
def test_who_may_write_the_files(place: Place, name: str) -> None:
    """Whoever writes one says what runs as the user: also the user's own may be nobody else's."""
    path = place.write(name, "")
    place.load()
    for one, why in ((path, "everybody"), (path, "its group"), (path.parent, "everybody")):
        mode = one.stat().st_mode
        one.chmod(0o777 if why == "everybody" else 0o664)
        with pytest.raises(UdiError) as caught:
            place.load()
        assert (
            caught.value.message
            == f"configuration {one} is not trusted: it may be written by {why}"
        )
        assert caught.value.hint == f"as its owner: chmod go-w {one}"
        one.chmod(mode)
    place.load()


def test_files_that_cant_be_read(place: Place) -> None:
    path = place.write("user/config.toml", "")
    path.chmod(0)
    with pytest.raises(UdiError, match=r"config\.toml: Permission denied"):
        place.load()
    path.chmod(0o644)
    path.write_bytes(b'a = "\xff"')
    with pytest.raises(UdiError, match="not UTF-8"):
        place.load()
    place.environ["UDI_CONFIG"] = "/nowhere/x.toml"
    with pytest.raises(UdiError, match=r"/nowhere/x.toml \(from UDI_CONFIG\): no such file"):
        place.load()


@pytest.mark.parametrize(
    ("text", "line", "why", "hint"),
    [
        ("[imag]\nx = 1", 1, "imag: unknown key", "did you mean image?"),
        ("[image]\n\npul = 'x'", 3, "image.pul: unknown key", "did you mean pull?"),
        ("[image]\nqqq = 1", 2, "image.qqq: unknown key", "keys here: compression, level"),
        ("image = 3", 1, "image: expected a table, found an integer", ""),
        ("[image]\npull = 'often'", 2, "image.pull: 'often' is none of its values", "one of: miss"),
        ("[image]\nlevel = '3'", 2, "image.level: expected an integer, found a string", "from 1"),
        ("[image]\nlevel = true", 2, "expected an integer, found true or false", ""),
        ("[image]\nlevel = 99", 2, "image.level: 99 is out of bounds", "from 1 to 22"),
        ("[image]\nregistry = 5", 2, "expected a string, found an integer", "double quotes"),
        ("[store]\nsite = '/a'", 2, "store.site: expected a list, found a string", '["..."'),
        ("[store]\npath = 'a/b'", 2, "store.path: path a/b is not absolute", 'begin it with "/"'),
        ("[store]\npath = '/a/../b'", 2, "path /a/../b has a '..'", ""),
        ("[store]\npath = '$X/../b'", 2, "has a '..'", ""),
        ("[cache]\nlimit = '-1'", 2, "cache.limit: size=-1: a size can't be negative", ""),
        ("[cache]\nlimit = 1.5", 2, "cache.limit: expected a string, found a number", ""),
        ("[gpu]\ncdi_spec_dirs = ''", 2, "expected a list, found a string", 'write ["...", "..."]'),
        ("[gpu]\ncdi_spec_dirs = ['cdi']", 2, "gpu.cdi_spec_dirs: path cdi is not absolute", ""),
        ("[gpu]\ncdi_dirs = []", 2, "gpu.cdi_dirs: unknown key", "did you mean cdi_spec_dirs?"),
        (
            "[[mount]]\nsource = '/a'\n[[mount]]\nsuorce = '/b'",
            4,
            "mount[2].suorce: unknown",
            "source?",
        ),
        ("[[mount]]\noptions = []", 1, "mount[1]: no source", 'write source = "/path"'),
        ("[[mount]]\nsource = '/a'\noptions = ['bind']", 3, "unknown option 'bind'", "ro, rw, rec"),
        ("[[mount]]\nsource = '/a'\noptions = ['ro','rw']", 3, "contradict each other", ""),
        ("[[mount]]\nsource = '/etc'", 2, "destination /etc is not allowed", ""),
        ("[[mount]]\nsource = '/a'\nrequired = 1", 3, "expected true or false", ""),
        ("[mount]\nsource = '/a'", 1, "mount: expected a list, found a table", "write [[mount]]"),
        ("[env]\nset = ['A=1']", 2, "env.set: expected a table, found a list", 'NAME = "VALUE"'),
        ("[env.set]\nA = 1", 1, "env.set: set.A: expected a string", ""),
        ("[env.set]\n'A=B' = '1'", 1, "'A=B' is no name of a variable", ""),
        ("[env]\nreset = {}", 2, "env.reset: unknown key", "did you mean"),
        ("[etc]\nhost = ['../x']", 2, "etc.host: '../x' is no file of /etc", ""),
        ("[etc.files]\nhosts = 'x'", 2, "etc.files.hosts: path x is not absolute", ""),
        ("[registry.'a.b']\nmirror = ''", 2, "registry.a.b.mirror: unknown key", "mirrors?"),
        ("[modules]\ndefault = ['none']", 2, "'none' is no name of a module", ""),
        ("[state]\ndirectories = ['a']", 2, "state.directories: path a is not absolute", ""),
        ("[image\n", 1, "not TOML: Expected ']'", ""),
        ("a = 1\na = 2", 2, "not TOML: Cannot overwrite a value", ""),
        ("a = [", 1, "not TOML: ", ""),
        ("a = " + "[" * 5000, 1, "not TOML: ", ""),
    ],
)
def test_problems(place: Place, text: str, line: int, why: str, hint: str) -> None:
    path = place.write("site/udi.toml", text)
    problem = show.check(place.environ)[0]
    assert str(problem).startswith(f"{path}:{line}: ")
    assert why in str(problem)
    assert hint in problem.hint
    with pytest.raises(UdiError) as caught:
        place.load()
    assert caught.value.message.startswith(f"{path}:{line}: ")


def test_users_files_may_not_mount_everywhere(place: Place) -> None:
    place.write("user/config.toml", '[[mount]]\nsource = "/a"\ndestination = "/var/lib"\n')
    with pytest.raises(UdiError, match=r"destination /var/lib \(inside /var\) is not allowed"):
        place.load()


def test_all_problems_at_once(place: Place) -> None:
    path = place.write("site/udi.toml", '[image]\nlevel = 0\npull = "x"\nfoo = 1\n')
    with pytest.raises(UdiError, match=r"\(and 2 more: see `udi config check`\)"):
        place.load()
    text = show.report(show.check(place.environ))
    assert text.splitlines()[0] == f"{path}:2: image.level: 0 is out of bounds"
    assert text.splitlines()[1] == "    from 1 to 22"
    assert len(text.splitlines()) == 6


def test_check_looks_at_this_host(place: Place) -> None:
    path = place.write(
        "site/udi.toml",
        """[modules]
default = ["a", "gone"]
[[mount]]
source = "/nowhere/x"
[[mount]]
source = "/nowhere/y"
required = false
[cache]
paths = ["/nowhere/c"]
[etc.files]
hosts = "/nowhere/hosts"
[server]
squashfuse = "/nowhere/squashfuse_ll"
[[mount]]
source = "$UNSET_HERE"
required = false
[gpu]
cdi_spec_dirs = ["/nowhere/cdi"]
""",
    )
    one = place.write("site/modules.d/a.toml", 'requires = ["b"]')
    two = place.write("site/modules.d/b.toml", 'requires = ["a"]')
    assert [str(problem) for problem in show.check(place.environ)] == [
        f"{one}:1: requires: module a requires b requires a: a circle",
        f"{two}:1: requires: module b requires a requires b: a circle",
        f"{path}:2: modules.default: module a requires b requires a: a circle",
        f"{path}:3: mount: source /nowhere/x does not exist on this host",
        f"{path}:11: etc hosts: /nowhere/hosts does not exist on this host",
        f"{path}:9: cache.paths: none of them exists here: /nowhere/c",
        f"{path}:18: gpu.cdi_spec_dirs: none of them exists here: /nowhere/cdi",
        f"{path}:13: server.squashfuse: /nowhere/squashfuse_ll is no program on this host",
    ]
    place.write("site/udi.toml", '[[mount]]\nsource = "$UNSET_HERE"\n')
    assert "a variable is unset" in show.report(show.check(place.environ))


def test_show(place: Place) -> None:
    place.write("site/udi.toml", (GOLDEN / "udi.toml").read_text())
    place.write("site/modules.d/mpich.toml", (GOLDEN / "mpich.toml").read_text())
    place.write("site/modules.d/broken.toml", "x")
    site, problems = show.merged(place.environ)
    assert len(problems) == 1
    text = show.show(site).replace(str(place.site), "SITE")
    assert text == (GOLDEN / "show.txt").read_text()
    assert (
        show.show(plan_site.from_flat(json.loads(json.dumps(plan_site.to_flat(site))))).replace(
            str(place.site), "SITE"
        )
        == text
    )


def test_the_examples_are_right() -> None:
    folder = TREE / "contrib/site"
    for path in [*folder.glob("*.toml"), *folder.glob("modules.d/*.toml")]:
        kind = "site-module" if path.parent.name == "modules.d" else "site"
        source = files.ConfigFile(str(path), kind, 0, 0, 0)
        assert merge.merge([source], [path.read_text()])[1] == []


TOML = st.recursive(
    st.text(max_size=5) | st.integers() | st.booleans() | st.floats() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
KEYS = st.sampled_from([key.split(".")[1] for key in schema.SITE_KEYS])
SECTIONS = st.sampled_from(
    ["mount", "env", "etc", "registry", "bind", "hook", "devices", "requires"]
)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool | float) else str(value)


@given(
    st.dictionaries(
        SECTIONS | KEYS | st.just("image"),
        TOML | st.dictionaries(KEYS | st.sampled_from(["set", "files", "source", "command"]), TOML),
    )
)
def test_any_values_are_a_site_or_problems(values: dict[str, object]) -> None:
    text = "\n".join(f"{key} = {_toml(value)}" for key, value in values.items())
    for kind in ("site", "site-module"):
        source = files.ConfigFile("/x/name.toml", kind, 0, 0, 0)
        site, problems = merge.merge([source], [text])
        assert all(problem.path == "/x/name.toml" and problem.line >= 1 for problem in problems)
        flat = json.loads(json.dumps(plan_site.to_flat(site)))
        modules.available(plan_site.from_flat(flat).modules)


@given(st.text(max_size=60))
def test_any_text_is_a_site_or_problems(text: str) -> None:
    merge.merge([files.ConfigFile("/x", "site", 0, 0, 0)], [text])


@given(st.text(alphabet=st.sampled_from("ab.='\"[]{},#\n\\1 "), max_size=30))
def test_lines_of_any_toml(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    found = tomllines.lines(text)
    for key in document:
        assert any(path[0] == key for path in found)


def test_lines() -> None:
    text = """# c
a.b = 1
"q.r" = '''x
[no]
y = 1'''
c = [
  1, # ]
  { d = "]" },
]
[t]
  'u' = \"\"\"
\\\"\"\" = 3 \"\"\"\"
[[m.n]]
x = 1
[[m.n]]
x = 2
[m.n.o]
z = 3
"""
    tomllib.loads(text)
    assert tomllines.lines(text) == {
        ("a",): 2,
        ("a", "b"): 2,
        ("q.r",): 3,
        ("c",): 6,
        ("t",): 10,
        ("t", "u"): 11,
        ("m", "n", 0): 13,
        ("m", "n", 0, "x"): 14,
        ("m", "n", 1): 15,
        ("m", "n", 1, "x"): 16,
        ("m", "n", 1, "o"): 17,
        ("m", "n", 1, "o", "z"): 18,
    }
    assert tomllines.line_of(tomllines.lines(text), ("t", "u", "deeper")) == 11
    assert tomllines.line_of({}, ("x",)) == 1
