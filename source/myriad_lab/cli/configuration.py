"""Compose a configuration: defaults of the dataclasses, then presets of ``config/``, then overrides."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import field as dataclass_field
from typing import Any

from myriad_lab.errors import ConfigurationError, nearest

GROUPS = ("experiment", "task", "agent", "backend", "logger")
SECTIONS = ("run", "env", "agent", "isaaclab")
SELECTORS = {"physics": "isaaclab.physics", "presets": "isaaclab.presets"}
"""Words of Isaac Lab's command line -> what they set here."""


@dataclass
class Overrides:
    """The overrides of a command line, sorted by what they mean."""

    groups: dict[str, str] = dataclass_field(default_factory=dict)
    """Config group -> preset, e.g. ``experiment=antmaze``."""
    values: dict[str, Any] = dataclass_field(default_factory=dict)
    """Dotted key -> value, e.g. ``agent.k=5``."""


def parse_overrides(overrides: Sequence[str]) -> Overrides:
    """Parse overrides with Hydra's grammar.

    Raises:
        ConfigurationError: If one is malformed or its first part is neither a section nor a group.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    result = Overrides()
    for text in overrides:
        word, _, rest = text.partition("=")
        if word in SELECTORS:  # before Hydra, which takes a comma for a sweep
            result.values[SELECTORS[word]] = rest
            continue
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise ConfigurationError(f"override {text!r} cannot be parsed: {reason}; write key=value") from error
        key, value = parsed.key_or_group, parsed.value()
        if parsed.is_delete() or parsed.is_add() or parsed.is_sweep_override():
            raise ConfigurationError(f"override {text!r}: sweeps, + and ~ are not supported; write key=value")
        if key in GROUPS:
            result.groups[key] = str(value)
        elif key.split(".")[0] in SECTIONS[1:] and "." in key:
            result.values[key] = value
        else:
            starts = ", ".join(f"{section}." for section in SECTIONS[1:])
            raise ConfigurationError(
                f"override {text!r}: keys start with {starts} or choose a preset with "
                f"{', '.join(f'{group}=' for group in GROUPS)}. {nearest(key, (*GROUPS, 'env', 'agent'))}"
            )
    return result


def list_presets(group: str) -> list[str]:
    """Return the names of the presets of a group."""
    from importlib.resources import files

    folder = files("myriad_lab.config") / group
    if not folder.is_dir():
        return []
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_preset(group: str, name: str) -> dict[str, Any]:
    """Return the values of a preset of the composition: a mapping with the sections of ``SECTIONS``.

    Raises:
        ConfigurationError: If there is no such preset (names the nearest), or it has another section.
    """
    values = read_preset(group, name)
    strange = values.keys() - set(SECTIONS)
    if strange:
        raise ConfigurationError(f"preset {group}={name} has the section {sorted(strange)[0]!r}; known: {SECTIONS}")
    return values


def read_preset(group: str, name: str) -> dict[str, Any]:
    """Return the values of ``config/<group>/<name>.yaml``.

    Raises:
        ConfigurationError: If there is no such preset; names the nearest.
    """
    from importlib.resources import files

    from omegaconf import OmegaConf

    presets = list_presets(group)
    if name not in presets:
        raise ConfigurationError(f"there is no preset {group}={name}. {nearest(name, presets)}")
    text = (files("myriad_lab.config") / group / f"{name}.yaml").read_text()
    values = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested mapping under dotted keys; lists are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves.update(flatten(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def keys_of(schema: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of a dataclass instance, nested dataclasses included."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.structured(schema))
    assert isinstance(values, dict)
    return [prefix + key for key in flatten({str(k): v for k, v in values.items()})]


def compose(schema: Any, values: Iterable[Mapping[str, Any]], section: str) -> Any:
    """Return a new instance of a dataclass with values set one layer after the other.

    Args:
        schema: Instance whose values are the defaults; it is not changed.
        values: Layers of dotted keys relative to the section, later ones win.
        section: Name of the section, for messages, e.g. ``agent``.

    Raises:
        ConfigurationError: For an unknown key (names the nearest), a value of the wrong type (names key, value and
            type), or whatever the dataclass itself refuses.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    assert is_dataclass(schema)
    config = OmegaConf.structured(schema)
    known = keys_of(schema)
    for layer in values:
        for key, value in layer.items():
            if key not in known and not any(name.startswith(f"{key}.") for name in known):
                near = nearest(f"{section}.{key}", [f"{section}.{name}" for name in known])
                raise ConfigurationError(f"unknown key {section}.{key}. {near}")
            try:
                OmegaConf.update(config, key, value)
            except OmegaConfBaseException as error:
                expected = _type_name(schema, key)
                raise ConfigurationError(f"{section}.{key}={value!r}: expected {expected}") from error
    return OmegaConf.to_object(config)


def to_yaml(values: Any) -> str:
    """Return a dataclass instance or a mapping as YAML."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(values) if is_dataclass(values) else OmegaConf.create(values))


def _type_name(schema: Any, key: str) -> str:
    """Return the annotation of a dotted key, as text."""
    from typing import get_type_hints

    *parents, last = key.split(".")
    for parent in parents:
        schema = getattr(schema, parent)
    hint = get_type_hints(type(schema)).get(last)
    if isinstance(hint, types.GenericAlias | types.UnionType) or not isinstance(hint, type):
        return str(hint).replace("typing.", "")
    return f"a group of keys ({hint.__name__})" if is_dataclass(hint) else hint.__name__
