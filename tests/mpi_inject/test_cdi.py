"""CDI files: the block-YAML reader, the rules of a specification, the choice of devices."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.cdi import registry as cdi_registry
from rootless_udi.mpi_inject.cdi import spec as cdi
from rootless_udi.mpi_inject.cdi import yaml_subset

NVIDIA = """---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
              hostPath: /dev/nvidia0
    - name: all
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
containerEdits:
    env:
        - NVIDIA_VISIBLE_DEVICES=void
    hooks:
        - hookName: createContainer
          path: /usr/bin/nvidia-cdi-hook
          args:
            - nvidia-cdi-hook
            - update-ldcache
            - --folder
            - /lib64
          env:
            - NVIDIA_CTK_DEBUG=false
    mounts:
        - hostPath: /lib64/libcuda.so.550.54.14
          containerPath: /lib64/libcuda.so.550.54.14
          options:
            - ro
            - rbind
"""


def document(**changes: Any) -> dict[str, Any]:
    """A small valid specification with some fields changed; None takes one away."""
    whole = {
        "cdiVersion": "1.0.0",
        "kind": "vendor.com/device",
        "devices": [{"name": "one", "containerEdits": {"env": ["A=b"]}}],
    } | changes
    return {key: value for key, value in whole.items() if value is not None}


def test_nvidia_ctk_yaml_is_read() -> None:
    spec = cdi.parse(NVIDIA, "/etc/cdi/nvidia.yaml")
    assert (spec.kind, spec.version, sorted(spec.devices)) == (
        "nvidia.com/gpu",
        "0.5.0",
        ["0", "all"],
    )
    assert spec.edits["hooks"][0]["args"][-2:] == ["--folder", "/lib64"]
    assert spec.edits["mounts"][0]["options"] == ["ro", "rbind"]


def test_yaml_and_json_say_the_same() -> None:
    as_json = json.dumps(yaml_subset.loads(NVIDIA))
    one = cdi.parse(as_json, "x.json").replace(path="")
    assert one == cdi.parse(NVIDIA, "x.yaml").replace(path="")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: b", {"a": "b"}),
        ("# c\na: b # c\n", {"a": "b"}),
        ("a: 'it''s' # c", {"a": "it's"}),
        ('a: "x\\ty\\u00e9\\""', {"a": 'x\ty\u00e9"'}),
        ("a:\n- b\n- c: 1\n  d:\n  - e", {"a": ["b", {"c": 1, "d": ["e"]}]}),
        ("- - a\n  - b\n-\n  c: d", [["a", "b"], {"c": "d"}]),
        ("a:\nb: ~\nc: null", {"a": None, "b": None, "c": None}),
        (
            "a: [ro, 'b, c', {d: e, f: [1]}, []]\nb: {}",
            {"a": ["ro", "b, c", {"d": "e", "f": [1]}, []], "b": {}},
        ),
        (
            "a: 0666\nb: -5\nc: 1.5\nd: 0.5.0\ne: 1:0",
            {"a": 438, "b": -5, "c": 1.5, "d": "0.5.0", "e": "1:0"},
        ),
        ("a: true\nb: False", {"a": True, "b": False}),
        ("a: http://x/y#z", {"a": "http://x/y#z"}),
        ("'a b': c", {"a b": "c"}),
        ("a: b\r\nc: d\r\n", {"a": "b", "c": "d"}),
        ("---\na: b\n...\n", {"a": "b"}),
    ],
)
def test_yaml_values(text: str, value: object) -> None:
    assert yaml_subset.loads(text) == value


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: &x b", "line 1: an anchor (&)"),
        ("a: *x", "an alias (*)"),
        ("a: !!str b", "a tag (!)"),
        ("a: |\n  b", "a block scalar (|)"),
        ("a: >\n  b", "a block scalar (>)"),
        ("%YAML 1.2\n---\na: b", "a directive (%)"),
        ("? a\n: b", "a complex key (?)"),
        ("a: b\n---\nc: d", "line 2: a second document"),
        ("a: b\n  c", "line 2: a value of several lines"),
        ("a:\n\tb: c", "line 2: a tab in the indentation"),
        ("a: 'b", "a quoted value of several lines"),
        ("a: [b,\n  c]", "a [] or {} of several lines"),
        ("a: b: c", "the unquoted value 'b: c'"),
        ("a: yes", "the unquoted word 'yes'"),
        ("a: b\na: c", "line 2: a second key 'a'"),
        ("<<: b", "the key '<<'"),
        ('a: "\\q"', "the escape \\q"),
        ('a: "\\ud800"', "the escape \\u"),
        ("a: 'b' c", "'c' behind a value"),
        ("a: [b c: d]", "in []"),
        ("a:\n  b: c\n d: e", "this indentation"),
        ("a: b\nc", "a line that is no KEY: VALUE"),
        ("a: @b", "a reserved character (@)"),
        ("0: b", "the key '0', which is no text,"),
        ("~: b", "the key '~', which is no text,"),
        ("--- a: b", "line 1: a value behind ---"),
        ("--- \t\na: b", "line 1: a value behind ---"),
        ("a: b\t", "a tab in an unquoted value"),
        ("a: [b\t]", "a tab in an unquoted value"),
        ("a: 'b'\t", "'\\t' behind a value"),
        ("- " * 40 + "a", "nesting deeper than 32"),
        ("a: " + "[" * 40 + "]" * 40, "nesting deeper than 32"),
    ],
)
def test_yaml_outside_of_the_subset_is_refused_by_name(text: str, what: str) -> None:
    with pytest.raises(yaml_subset.YamlError) as caught:
        yaml_subset.loads(text)
    assert what in str(caught.value)
    with pytest.raises(UdiError, match=r"reading CDI file x\.yaml failed: line") as refused:
        cdi.parse(text, "x.yaml")
    assert "JSON" in refused.value.hint


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
values = st.recursive(
    words | st.integers(-(2**53), 2**53) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=20,
)


def quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\x7f")


def to_yaml(value: Any, indent: int = 0) -> str:
    """Write block YAML with every string quoted as JSON does, which YAML reads alike."""
    pad = "  " * indent
    if isinstance(value, dict) and value:
        rows = []
        for key, inner in value.items():
            nested = isinstance(inner, (dict, list)) and inner
            rest = "\n" + to_yaml(inner, indent + 1) if nested else " " + to_yaml(inner)
            rows.append(f"{pad}{quoted(key)}:{rest}")
        return "\n".join(rows)
    if isinstance(value, list) and value:
        rows = []
        for inner in value:
            nested = isinstance(inner, (dict, list)) and inner
            text = to_yaml(inner, indent + 1)
            rows.append(f"{pad}- " + (text.lstrip(" ") if nested else text))
        return "\n".join(rows)
    return quoted(value)


@given(values)
def test_block_yaml_round_trips(value: Any) -> None:
    assert yaml_subset.loads(to_yaml(value)) == value


@given(st.text(max_size=300))
def test_yaml_of_any_text_raises_nothing_else(text: str) -> None:
    try:
        yaml_subset.loads(text)
    except yaml_subset.YamlError:
        pass


PIECES = [*"a \n'\"[]{},#0\\-~|\t", "b:", "  ", "- ", ": ", "yes", "--- ", "1.5"]


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_yaml_agrees_with_pyyaml_where_it_reads_at_all(text: str) -> None:
    try:
        ours = yaml_subset.loads(text)
    except yaml_subset.YamlError:
        return
    assert yaml.safe_load(text) == ours


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"cdiVersion": None}, "no cdiVersion"),
        ({"cdiVersion": 0.5}, "cdiVersion: a string is needed"),
        ({"cdiVersion": "2.0.0"}, "cdiVersion '2.0.0' is not known here (0.3.0 to 1.1.0)"),
        ({"kind": None}, "kind: missing"),
        ({"kind": "vendor"}, "kind 'vendor' is not VENDOR/CLASS"),
        ({"kind": "vendor.com/a/b"}, "class 'a/b' has characters"),
        ({"kind": "0vendor/a"}, "vendor '0vendor' has characters"),
        ({"devices": None}, "devices: missing"),
        ({"devices": []}, "devices: empty"),
        ({"devices": {}}, "devices: a list is needed"),
        ({"extra": 1}, "extra: unknown field"),
        ({"containerEdits": []}, "containerEdits: an object is needed"),
        ({"containerEdits": {"env": ["=x"]}}, "'=x' is not NAME=VALUE"),
        ({"containerEdits": {"env": "A=b"}}, "containerEdits.env: a list is needed"),
        ({"containerEdits": {"mounts": [{"hostPath": "/a"}]}}, "mounts[0].containerPath: missing"),
        (
            {"containerEdits": {"mounts": [{"hostPath": "/a", "containerPath": "b"}]}},
            "'b' is not an absolute path",
        ),
        (
            {"containerEdits": {"mounts": [{"hostPath": "/a", "containerPath": "/b/../c"}]}},
            "without '..'",
        ),
        ({"containerEdits": {"deviceNodes": [{"path": "/d", "type": "x"}]}}, "type 'x' is none"),
        ({"containerEdits": {"deviceNodes": [{"path": "/d", "permissions": "rx"}]}}, "'rx'"),
        ({"containerEdits": {"deviceNodes": [{"path": "/d", "uid": -1}]}}, "-1 is not from 0"),
        ({"containerEdits": {"deviceNodes": [{"path": "/d", "major": True}]}}, "an integer"),
        ({"containerEdits": {"hooks": [{"hookName": "x", "path": "/h"}]}}, "hookName 'x' is none"),
        (
            {"containerEdits": {"hooks": [{"hookName": "poststart", "path": "/h", "timeout": 0}]}},
            "0 is not from 1",
        ),
        ({"containerEdits": {"additionalGids": ["44"]}}, "additionalGids[0]: an integer"),
        ({"containerEdits": {"intelRdt": {"enableCMT": "yes"}}}, "true or false"),
        ({"annotations": {"a": 1}}, "annotations: a string is needed"),
        ({"devices": [{"name": "-a", "containerEdits": {}}]}, "device name '-a'"),
        ({"devices": [{"name": "a"}]}, "devices[0].containerEdits: missing"),
        ({"devices": [{"name": "a", "containerEdits": {}}] * 2}, "'a' is defined twice"),
        (
            {"cdiVersion": "0.3.0", "devices": [{"name": "0", "containerEdits": {}}]},
            "version 0.5.0",
        ),
        ({"cdiVersion": "0.5.0", "annotations": {"a": "b"}}, "version 0.6.0"),
        ({"cdiVersion": "0.6.0", "containerEdits": {"additionalGids": [44]}}, "version 0.7.0"),
        (
            {"containerEdits": {"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}},
            "uses what came with version 1.1.0 and says cdiVersion 1.0.0",
        ),
        ({"containerEdits": {"env": ["A=\0"]}}, "a NUL character"),
    ],
)
def test_broken_rules_are_named(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UdiError, match=r"reading CDI file /etc/cdi/x\.json failed") as caught:
        cdi.parse(json.dumps(document(**changes)), "/etc/cdi/x.json")
    assert what in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("version", cdi.VERSIONS)
def test_every_version_is_read(version: str) -> None:
    assert cdi.check(document(cdiVersion=version), "x").version == version


def test_a_leading_v_is_read() -> None:
    assert cdi.check(document(cdiVersion="v0.6.0"), "x").version == "0.6.0"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100000, '{"a": NaN}'])
def test_broken_json_is_refused(text: str) -> None:
    with pytest.raises(UdiError, match="reading CDI file"):
        cdi.parse(text, "x.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
FIELDS = ["env", "deviceNodes", "mounts", "hooks", "intelRdt", "additionalGids", "netDevices"]


@given(
    st.dictionaries(st.sampled_from([*document(), "containerEdits", "annotations"]), json_values),
    st.dictionaries(st.sampled_from(FIELDS), json_values),
    st.booleans(),
)
def test_any_document_is_a_spec_or_a_udi_error(
    changes: dict[str, Any], edits: dict[str, Any], inside: bool
) -> None:
    whole = document(**changes)
    if inside:
        whole["containerEdits"] = edits
    else:
        whole["devices"] = [{"name": "one", "containerEdits": edits}]
    try:
        cdi.parse(json.dumps(whole), "x.json")
    except UdiError:
        pass


@given(st.data())
def test_a_cut_or_changed_file_is_a_spec_or_a_udi_error(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(NVIDIA)))
    end = data.draw(st.integers(start, min(start + 20, len(NVIDIA))))
    text = NVIDIA[:start] + data.draw(st.text(max_size=5)) + NVIDIA[end:]
    for path in ("x.yaml", "x.json"):
        try:
            cdi.parse(text, path)
        except UdiError:
            pass


def write(root: Path, path: str, whole: dict[str, Any] | str) -> None:
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(whole if isinstance(whole, str) else json.dumps(whole))


def named(*names: str) -> dict[str, Any]:
    return document(devices=[{"name": n, "containerEdits": {}} for n in names])


def test_the_dynamic_directory_wins(tmp_path: Path) -> None:
    write(tmp_path, "/etc/cdi/a.json", named("one", "two"))
    write(tmp_path, "/var/run/cdi/b.json", named("one"))
    write(tmp_path, "/etc/cdi/README", "not a specification")
    registry = cdi_registry.load(root=str(tmp_path))
    assert registry.devices["vendor.com/device=one"].path == "/var/run/cdi/b.json"
    assert registry.devices["vendor.com/device=two"].path == "/etc/cdi/a.json"
    assert not registry.conflicts and not registry.broken


def test_two_files_of_one_directory_that_define_a_device_conflict(tmp_path: Path) -> None:
    write(tmp_path, "/etc/cdi/a.json", named("one"))
    write(tmp_path, "/etc/cdi/b.json", named("one", "two"))
    registry = cdi_registry.load(root=str(tmp_path))
    with pytest.raises(UdiError, match=r"defined by both /etc/cdi/a.json and /etc/cdi/b.json"):
        cdi_registry.choose(registry, ["vendor.com/device=one"])
    assert cdi_registry.choose(registry, ["vendor.com/device=two"])[0].names == ("two",)


def test_a_conflict_is_settled_by_the_dynamic_directory(tmp_path: Path) -> None:
    for path in ("/etc/cdi/a.json", "/etc/cdi/b.json", "/var/run/cdi/c.json"):
        write(tmp_path, path, named("one"))
    chosen = cdi_registry.choose(cdi_registry.load(root=str(tmp_path)), ["vendor.com/device=one"])
    assert chosen[0].spec.path == "/var/run/cdi/c.json"


def test_all_is_every_device_where_the_vendor_has_no_all(tmp_path: Path) -> None:
    write(tmp_path, "/etc/cdi/a.json", named("b", "a"))
    registry = cdi_registry.load(root=str(tmp_path))
    (chosen,) = cdi_registry.choose(registry, ["vendor.com/device=all"])
    assert (chosen.names, chosen.every) == (("a", "b"), True)


def test_an_unknown_device_names_those_there_are(tmp_path: Path) -> None:
    write(tmp_path, "/etc/cdi/a.json", named("one"))
    with pytest.raises(UdiError, match=r"device=two: not found in /etc/cdi and") as caught:
        cdi_registry.choose(cdi_registry.load(root=str(tmp_path)), ["vendor.com/device=two"])
    assert "vendor.com/device=one" in caught.value.hint


def test_a_broken_file_matters_where_its_kind_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "/etc/cdi/a.json", named("one"))
    write(tmp_path, "/etc/cdi/b.yaml", "kind: other.com/device\nx: y\n")
    registry = cdi_registry.load(root=str(tmp_path))
    assert cdi_registry.choose(registry, ["vendor.com/device=one"])
    with pytest.raises(UdiError, match=r"not found in /etc/cdi") as caught:
        cdi_registry.choose(registry, ["elsewhere.com/device=one"])
    assert "; reading CDI file /etc/cdi/b.yaml failed: " in caught.value.hint
    with pytest.raises(UdiError, match=r"reading CDI file /etc/cdi/b.yaml failed"):
        cdi_registry.choose(registry, ["other.com/device=one"])


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "/etc/cdi/a.json", named("one"))
    (tmp_path / "etc/cdi/a.json").chmod(0)
    with pytest.raises(UdiError, match="Permission denied"):
        cdi_registry.choose(cdi_registry.load(root=str(tmp_path)), ["vendor.com/device=one"])
    (tmp_path / "etc/cdi/a.json").chmod(0o644)
    (tmp_path / "etc/cdi/a.json").write_bytes(b"\xff")
    with pytest.raises(UdiError, match="not UTF-8"):
        cdi_registry.choose(cdi_registry.load(root=str(tmp_path)), ["vendor.com/device=one"])
    with open(tmp_path / "etc/cdi/a.json", "wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(UdiError, match="larger than 16 MiB"):
        cdi_registry.choose(cdi_registry.load(root=str(tmp_path)), ["vendor.com/device=one"])


@pytest.mark.parametrize("name", ["gpu", "nvidia.com=0", "a/b=", "a/b=-", "/b=c", "a/b=c d"])
def test_device_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UdiError, match="no CDI device name") as caught:
        cdi.split(name)
    assert "VENDOR/CLASS=NAME" in caught.value.hint


def test_device_names_of_nvidia_are_names() -> None:
    for name in ("0", "0:1", "GPU-8fe6a7d2-1c2b", "MIG-0aa1", "all"):
        assert cdi.split(f"nvidia.com/gpu={name}") == ("nvidia.com/gpu", name)
