"""Shifter's udiRoot.conf becomes our files, and says what did not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.config import files, merge
from rootless_udi.plan import modules
from rootless_udi.plan.site import DEFAULT_MOUNTS, Site
from rootless_udi.plan.steps import Env
from rootless_udi.shifter import udiroot
from rootless_udi.shifter.udiroot import Converted
from tests.kit import places

pytestmark = pytest.mark.alike

GOLDEN = places.GOLDEN / "config"


def read(converted: Converted) -> Site:
    """Read the converted files as a launch would; they must have no problem."""
    sources, texts = [], []
    for name, text in converted.files:
        kind = "site-module" if name.startswith("modules.d/") else "site"
        sources.append(files.ConfigFile(f"/s/{name}", kind, 0, 0, 0))
        texts.append(text)
    site, problems = merge.merge(sources, texts)
    assert [str(problem) for problem in problems] == []
    return site


def test_a_site_s_file() -> None:
    text = (GOLDEN / "udiRoot.conf").read_text()
    listing = {"/opt/shifter/etc_files": ["nsswitch.conf", "passwd"]}
    converted = udiroot.convert(text, lambda folder: listing[folder])
    whole = "".join(f"==> {name}\n{text}" for name, text in converted.files)
    whole += "==> notes\n" + "".join(f"{note}\n" for note in converted.notes)
    assert whole == (GOLDEN / "udiRoot.txt").read_text()
    site = read(converted)
    assert site.name == "cori"
    assert [row.destination for row in site.mounts[len(DEFAULT_MOUNTS) :]] == [
        "/global/homes",
        "/global/cscratch1",
        "/var/opt/cray/alps",
    ]
    assert [env.replace(reason="") for env in site.environment] == [
        Env("unset", "PYTHONSTARTUP"),
        Env("unset", "MODULESHOME"),
        Env("set", "SHIFTER_RUNTIME", "1"),
        Env("set", "NERSC_HOST", "cori"),
        Env("append", "PATH", "/opt/udiImage/bin"),
    ]
    assert site.cache_limit == 200 * 1024**3
    assert dict(site.etc)["passwd"] == "/opt/shifter/etc_files/passwd"


def test_modules_whose_names_are_built_in_here() -> None:
    converted = udiroot.convert(
        "module_gpu_siteEnv=A=1\nmodule_gpu_conflict=mpi\ndefaultModules=gpu"
    )
    assert [str(note) for note in converted.notes] == [
        "line 1: module_gpu_siteEnv: gpu is built in; the site's own is called site-gpu"
    ]
    site = read(converted)
    assert site.default_modules == ("site-gpu",)
    assert modules.available(site.modules)["site-gpu"].conflicts == ("site-mpi",)


def test_every_key_of_shifter_is_known() -> None:
    for key in udiroot.NO_COUNTERPART:
        (note,) = udiroot.convert(f"{key}=x\n").notes
        assert (note.line, note.key) == (1, key)
        assert "unknown" not in note.why


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("siteFs=a:/b", "siteFs: siteFs a:/b: source a is not absolute"),
        ("siteFs=/a:/b:sticky", "siteFs: siteFs /a:/b:sticky: unknown flag sticky"),
        ("siteFs=/a:/etc", "destination /etc is not allowed"),
        ("siteFs=/a:/b:perNodeCache=size=1G", "a perNodeCache for everybody is not made"),
        ("siteEnv=A", "siteEnv: 'A' is not NAME=VALUE"),
        ("siteEnvAppend=A=1 A=2", "append A twice: write both into one value"),
        ("module_a=1", "module_a: expected module_NAME_KEY"),
        ("module__siteFs=/a", "'' is no name of a module"),
        ("module_a_foo=1", "module_a_foo: unknown, to Shifter too"),
        ("module_a_copyPath=x", "path x is not absolute"),
        ("perNodeCacheSizeLimit=much", "size=much: not a size"),
        ("mountPropagationStyle=shared", "'shared' is none of its values"),
        ("defaultImageType=local", "local: images are docker's and OCI's"),
        ("populateEtcDynamically=0", "always made anew"),
        ("etcPath=/e", "nothing is in /e here: list its files in etc.files"),
        (" # not a comment", "# not a comment: not KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_a_note(line: str, note: str) -> None:
    converted = udiroot.convert(f"# c\n{line}")
    assert len(converted.notes) == 1
    assert str(converted.notes[0]).startswith("line 2: ")
    assert note in str(converted.notes[0])
    read(converted)


KEYS = [*udiroot.NO_COUNTERPART, "siteFs", "siteEnv", "siteEnvAppend", "siteEnvUnset", "system"]
KEYS += ["etcPath", "defaultModules", "perNodeCachePath", "module_a_siteFs", "module_b_userhook"]
KEYS += ["module_a_siteEnvPrepend", "module_c_conflict", "module_a_copyPath", "module_gpu_enabled"]
TEXTS = st.text(alphabet=st.sampled_from('/ab.:;"\\= ,$~\n\x7fé'), max_size=20) | st.text(
    max_size=20
)


@given(st.lists(st.tuples(st.sampled_from(KEYS), TEXTS), max_size=5))
def test_any_values_make_good_files(pairs: list[tuple[str, str]]) -> None:
    text = "\n".join(f"{key}={value}" for key, value in pairs)
    read(udiroot.convert(text, lambda folder: ["hosts"]))


@given(st.text())
def test_any_text_makes_good_files(text: str) -> None:
    read(udiroot.convert(text))
