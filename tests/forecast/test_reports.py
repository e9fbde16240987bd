"""The forecast as a page and as a document of NFD."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.forecast import nfd, report_html
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.check import Answer
from rootless_udi.forecast.finding import FAILS, RUNS, CheckFinding, Evidence
from rootless_udi.plan.options import parse
from tests.conftest import User
from tests.forecast.test_check import SITE

VOID = {"meta"}
BAD = "<script>alert(1)</script>&\"'\x1b[31m"


class Page(HTMLParser):
    """Checks that tags are closed in order; keeps the text and the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert name in ("lang", "charset", "name", "content", "class", "id", "href")
            assert name != "href" or (value or "").startswith("#")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def test_a_page_that_is_well_formed_and_obeys_nobody() -> None:
    found = CheckFinding(BAD, FAILS, BAD, Evidence(BAD, BAD), Evidence(BAD, BAD), BAD, (BAD,))
    fine = CheckFinding("fine", RUNS, "nothing in the way")
    page = read(report_html.page(BAD, (BAD,), [Answer(BAD, FAILS, (fine, found))], BAD))
    assert "script" not in page.tags and "<script>alert(1)</script>" in page.text
    assert "\x1b" not in page.text and "\\x1b" in page.text
    assert page.text.index("will not run") < page.text.index("nothing in the way")


def asked(*words: str) -> Asked:
    return Asked("my/app:1", "/", parse([*words, "my/app:1"], {}), {})


def rules(facts: dict[str, Any], *words: str) -> dict[str, Any]:
    """Return the rules by name, after YAML has been written and read."""
    text = nfd.yaml(nfd.document(facts, asked(*words)))
    found = yaml.safe_load(text)
    assert found["version"] == "v1alpha1"
    (one,) = found["compatibilities"]
    return {rule["name"]: rule for rule in one["rules"]}


def test_what_every_start_needs() -> None:
    found = rules({})
    assert set(found) == {
        "a kernel that mounts FUSE in user namespaces",
        "FUSE",
        "user namespaces",
    }
    first = found["a kernel that mounts FUSE in user namespaces"]["matchAny"][1]
    assert first["matchFeatures"][0]["matchExpressions"]["minor"] == {"op": "Gt", "value": ["17"]}


def test_what_an_image_needs() -> None:
    facts = {
        "architecture": "amd64",
        "variant": "v3",
        "env": ["NVIDIA_REQUIRE_CUDA=cuda>=12.4"],
        "forecast": {
            "programs": {
                "kernels": {"5.10.0": ["/lib/libc.so.6"], "6.1.0": ["/x"], "3.2.0": ["/y"]},
                "levels": {"4": ["/x"]},
            }
        },
    }
    found = rules(facts)
    flags = found["x86-64-v3"]["matchFeatures"][0]["matchExpressions"]
    assert "AVX2" in flags and "AVX512F" not in flags
    assert "Linux 5.10.0, for the C library" in found and len(found) == 6
    vendor = found["a GPU of nvidia"]["matchFeatures"][0]["matchExpressions"]["vendor"]
    assert vendor == {"op": "In", "value": ["10de"]}
    assert "a GPU of nvidia" not in rules(facts, "--gpu=none")
    assert "a GPU of amd" in rules({}, "--gpu=amd")


JSON = st.recursive(
    st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_yaml_reads_back(value: dict[str, Any]) -> None:
    assert yaml.safe_load(nfd.yaml(value)) == value


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/bin").mkdir(parents=True)
    return tmp_path / "root"


def test_the_commands_options(user: User, root: Path) -> None:
    (user.home / "lab.json").write_text(json.dumps(SITE))
    words = ("udi", "check", root, "--site", "./lab.json")
    done = user.run(*words, "--report=html", "--to", "page.html", "--", "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    page = read((user.home / "page.html").read_text())
    assert "lab: will not run" in page.text and "Remedy" in page.text
    again = user.run(*words, "--report=html", "--to", "page.html")
    assert (again.returncode, "is there already" in again.stderr) == (125, True)
    assert user.run(*words, "--report=html", "--to", "page.html", "--force").returncode in (0, 3)
    done = user.run(*words, "--export=nfd")
    assert yaml.safe_load(done.stdout)["version"] == "v1alpha1"
