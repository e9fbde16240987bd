"""The start path's JSON reader agrees with json."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.fastjson import loads

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.sampled_from([None, 2]))
def test_reads_what_json_writes(value: object, indent: int | None) -> None:
    assert loads(json.dumps(value, indent=indent)) == value


@pytest.mark.parametrize("text", ["", "{", "[1", "{} {}", "nope", '{"a" 1}', "[1,]"])
def test_refuses_what_is_no_document(text: str) -> None:
    with pytest.raises(ValueError):
        loads(text)
