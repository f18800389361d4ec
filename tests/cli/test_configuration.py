from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from myriad_lab.cli.algorithms import AGENTS
from myriad_lab.cli.configuration import (
    GROUPS,
    SECTIONS,
    compose,
    flatten,
    keys_of,
    list_presets,
    load_preset,
    parse_overrides,
    to_yaml,
)
from myriad_lab.errors import ConfigurationError


@dataclass
class InnerCfg:
    widths: list[int] = field(default_factory=lambda: [4, 4])
    rate: float = 0.1


@dataclass
class OuterCfg:
    k: int = 5
    goal: list[float] | None = None
    kind: str = "mepol"
    fast: bool = False
    inner: InnerCfg = field(default_factory=InnerCfg)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigurationError(f"k={self.k} must be positive")


def test_overrides_are_parsed_with_the_grammar_of_hydra() -> None:
    parsed = parse_overrides(
        ["experiment=pointmaze", "agent.k=7", "env.goal=[1.5,-2]", "agent.kind='a b'", "env.x=null"]
    )
    assert parsed.groups == {"experiment": "pointmaze"}
    assert parsed.values == {"agent.k": 7, "env.goal": [1.5, -2], "agent.kind": "a b", "env.x": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agent.k=[1,", "cannot be parsed"),
        ("agnt.k=1", "Did you mean agent"),
        ("+agent.k=1", "not supported"),
        ("~agent.k", "not supported"),
        ("agent.k=1,2", "not supported"),
        ("k=1", "keys start with env., agent."),
    ],
)
def test_a_bad_override_says_why(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_overrides([text])


def test_later_layers_win_and_the_schema_stays() -> None:
    schema = OuterCfg()
    result = compose(schema, [{"k": 6, "inner.rate": 0.5}, {"k": 7, "inner.widths": [2], "goal": [1, 2]}], "agent")
    assert result == OuterCfg(k=7, goal=[1.0, 2.0], inner=InnerCfg([2], 0.5))
    assert schema == OuterCfg()


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown key agent\.inner\.rat\. Did you mean agent\.inner\.rate"):
        compose(OuterCfg(), [{"inner.rat": 1.0}], "agent")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("k", "many", r"agent\.k='many': expected int"),
        ("inner.rate", [1], r"agent\.inner\.rate=\[1\]: expected float"),
        ("inner.widths", "wide", r"agent\.inner\.widths='wide': expected list\[int\]"),
        ("fast", 7.5, r"agent\.fast=7\.5: expected bool"),
        ("inner", 3, r"agent\.inner=3: expected a group of keys"),
    ],
)
def test_a_wrong_type_names_key_value_and_type(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        compose(OuterCfg(), [{key: value}], "agent")


def test_the_dataclass_has_the_last_word() -> None:
    with pytest.raises(ConfigurationError, match="k=0 must be positive"):
        compose(OuterCfg(), [{"k": 0}], "agent")


def test_flatten_and_keys() -> None:
    assert flatten({"a": {"b": 1, "c": [2]}, "d": None}) == {"a.b": 1, "a.c": [2], "d": None}
    assert keys_of(OuterCfg()) == ["k", "goal", "kind", "fast", "inner.widths", "inner.rate"]


def test_yaml_holds_every_value() -> None:
    text = to_yaml(OuterCfg())
    assert "kind: mepol" in text
    assert "  rate: 0.1" in text


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"no preset experiment=pointmase\. Did you mean pointmaze"):
        load_preset("experiment", "pointmase")


@pytest.mark.parametrize("group", GROUPS)
def test_every_preset_can_be_read(group: str) -> None:
    names = list_presets(group)
    assert names
    for name in names:
        assert load_preset(group, name).keys() <= set(SECTIONS)


def test_a_preset_of_an_agent_is_called_after_its_algorithm() -> None:
    for name in list_presets("agent"):
        algorithm = name.split("_")[0]
        compose(AGENTS[algorithm](), [flatten(load_preset("agent", name).get("agent", {}))], "agent")
