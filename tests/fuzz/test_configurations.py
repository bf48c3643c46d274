"""Configurations of any content: read, or refused by one clear error. SIMFLOW_FUZZ=N tries N times as many."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from simflow_plugin.config.loading import config_from_source
from simflow_plugin.config.yaml_source import YamlSource, read_yaml_source
from simflow_plugin.errors import ConfigError
from tests.training.tiny_runs import tiny_values

TIMES = int(os.environ.get("SIMFLOW_FUZZ", "1"))

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-(10**400), 10**400, 2**63, -(2**63) - 1]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["kl", "simflow", "../../x", "pipe:touch /tmp/x", "\0", "010", "1:30", "~/x", "{0..9}"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def key_paths(values: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every key of nested mappings."""
    if not isinstance(values, dict):
        return []
    return [path for key in values for path in ((*above, key), *key_paths(values[key], (*above, key)))]


PATHS = [*key_paths(tiny_values()), ("unknown",), ("training", "num_workers"), ("data", "shards"), ("seed",)]


def replaced(values: Any, path: tuple[str, ...], value: Any) -> Any:
    """Return nested mappings with the value at `path` replaced, whatever stood there."""
    if not path:
        return value
    known = values if isinstance(values, dict) else {}
    return {**known, path[0]: replaced(known.get(path[0]), path[1:], value)}


@settings(max_examples=40 * TIMES, deadline=None, derandomize=TIMES == 1)
@given(changes=st.lists(st.tuples(st.sampled_from(PATHS), VALUES), min_size=1, max_size=3))
def test_values_of_any_type_are_refused_by_name_or_read(changes: list[tuple[tuple[str, ...], Any]]) -> None:
    values: Any = tiny_values()
    for path, value in changes:
        values = replaced(values, path, value)
    with suppress(ConfigError):
        config = config_from_source(YamlSource(values, {}, "fuzz"))
        again = config_from_source(YamlSource(yaml.safe_load(config.to_yaml()), {}, "again"))
        assert again == config


@settings(max_examples=150 * TIMES, deadline=None, derandomize=TIMES == 1)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text(alphabet="ab:&*[]{}-!|>#'\" \n\t0_.,%@?<~", max_size=80).map(str.encode),
    )
)
def test_text_of_any_kind_is_refused_by_name_or_read(content: bytes, tmp_path_factory: Any) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "fuzz.yaml"
    path.write_bytes(content)
    with suppress(ConfigError):
        assert isinstance(read_yaml_source(str(path)).values, dict)
