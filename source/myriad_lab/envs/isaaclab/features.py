"""What the entropy is measured on in tasks that do not say so: chosen by name, env origins removed, SI units.

Three kinds of names, their parts separated by colons:

* ``root_xy``, ``root_pos``, ``root_quat`` (w, x, y, z), ``root_lin_vel``, ``joint_pos``, then optionally the asset
  (``robot`` by default): state of an articulation or a rigid object, e.g. ``root_pos:object``.
* ``body_pos:BODY``, then optionally the asset: position of one body, e.g. ``body_pos:panda_hand``.
* ``term:GROUP:TERM``: a named term of an observation group of a manager-based task, as the policy sees it, e.g.
  ``term:policy:object_position``.
* ``columns:GROUP:START:STOP``: columns of an observation group of a direct task, e.g. ``columns:policy:0:3``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from myriad_lab.envs.contract import TermSpec
from myriad_lab.errors import ConfigurationError, nearest

Reader = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
"""Observation groups of all envs -> the feature, shape (num_envs, size)."""

_STATES = {
    "root_xy": ("root_pos_w", "m"),
    "root_pos": ("root_pos_w", "m"),
    "root_quat": ("root_quat_w", "1"),
    "root_lin_vel": ("root_lin_vel_w", "m/s"),
    "joint_pos": ("joint_pos", "rad"),
}
"""Kind -> field of the asset's data and its unit."""
_PARTS = {**dict.fromkeys(_STATES, (0, 1)), "body_pos": (1, 2), "term": (2, 2), "columns": (3, 3)}
"""Kind -> fewest and most parts after it."""


@dataclass(frozen=True)
class Feature:
    """A feature by name, not yet looked up in an env."""

    text: str
    """As it was written."""
    kind: str
    """First part."""
    parts: tuple[str, ...]
    """The other parts."""


def parse_feature(text: str) -> Feature:
    """Take a name apart.

    Raises:
        ConfigurationError: The kind is unknown, or it has too few or too many parts.
    """
    kind, *parts = text.split(":")
    if kind not in _PARTS:
        raise ConfigurationError(f"isaaclab.features: unknown feature {text!r}. {nearest(kind, _PARTS)}")
    fewest, most = _PARTS[kind]
    if not fewest <= len(parts) <= most or not all(parts):
        example = {"body_pos": "body_pos:BODY", "term": "term:GROUP:TERM", "columns": "columns:GROUP:START:STOP"}
        raise ConfigurationError(
            f"isaaclab.features: {text!r}; expected {example.get(kind, f'{kind} or {kind}:ASSET')}"
        )
    if kind == "columns" and not (parts[1].isdecimal() and parts[2].isdecimal() and int(parts[1]) < int(parts[2])):
        raise ConfigurationError(f"isaaclab.features: {text!r}; expected two numbers START < STOP")
    return Feature(text, kind, tuple(parts))


def known_size(text: str) -> int | None:
    """Return how many numbers a feature has, ``None`` where only the env can tell."""
    feature = parse_feature(text)
    if feature.kind == "columns":
        return int(feature.parts[2]) - int(feature.parts[1])
    return {"root_xy": 2, "root_pos": 3, "root_quat": 4, "root_lin_vel": 3, "body_pos": 3}.get(feature.kind)


def default_features(env: Any) -> list[str]:
    """Return what is taken where nobody named features: nothing where the task has its own or no robot walks about."""
    robot = env.scene.articulations.get("robot")
    return ["root_xy"] if "features" not in env.obs_buf and robot is not None and not robot.is_fixed_base else []


class Features:
    """The group ``features`` of an Isaac Lab env."""

    def __init__(self, env: Any, names: list[str]) -> None:
        """Look the names up in the env.

        Args:
            env: The inner ``DirectRLEnv`` or ``ManagerBasedRLEnv``.
            names: See the module.

        Raises:
            ConfigurationError: An asset, a body, a group, a term or a column is not there; names the nearest.
        """
        self._readers: list[Reader] = []
        terms = []
        for name in names:
            reader, unit = _reader(env, parse_feature(name))
            size = reader(env.obs_buf).shape[1]
            self._readers.append(reader)
            terms.append(TermSpec(name, (size,), unit))
        self.terms: tuple[TermSpec, ...] = tuple(terms)

    def __call__(self, groups: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the features now, fresh memory, float32 ``(num_envs, size)``."""
        return torch.cat([reader(groups) for reader in self._readers], dim=1).float()


def _reader(env: Any, feature: Feature) -> tuple[Reader, str]:
    """Return what reads a feature, and its unit."""
    if feature.kind == "term":
        return _term(env, feature)
    if feature.kind == "columns":
        return _columns(env, feature)
    if feature.kind == "body_pos":
        body, *rest = feature.parts
        asset = _asset(env, feature, rest)
        names = list(asset.body_names)
        if body not in names:
            raise ConfigurationError(f"isaaclab.features: {feature.text!r}: no body {body!r}. {nearest(body, names)}")
        index, origins = names.index(body), env.scene.env_origins
        return lambda _: asset.data.body_pos_w.torch[:, index] - origins, "m"
    asset = _asset(env, feature, feature.parts)
    field, unit = _STATES[feature.kind]
    if field.startswith("joint") and not hasattr(asset, "joint_names"):
        raise ConfigurationError(f"isaaclab.features: {feature.text!r}: the asset has no joints; take root_pos")
    if field == "root_quat_w":  # x, y, z, w there
        return lambda _: asset.data.root_quat_w.torch.roll(1, dims=1), unit
    if field != "root_pos_w":
        return lambda _: getattr(asset.data, field).torch, unit
    size, origins = (2 if feature.kind == "root_xy" else 3), env.scene.env_origins
    return lambda _: (asset.data.root_pos_w.torch - origins)[:, :size], unit


def _asset(env: Any, feature: Feature, parts: Any) -> Any:
    """Return the articulation or rigid object that a feature names, ``robot`` by default."""
    known = {**env.scene.articulations, **env.scene.rigid_objects}
    name = parts[0] if parts else "robot"
    if name not in known:
        raise ConfigurationError(
            f"isaaclab.features: {feature.text!r}: the scene has no asset {name!r}. {nearest(name, known)}"
        )
    return known[name]


def _term(env: Any, feature: Feature) -> tuple[Reader, str]:
    group, term = feature.parts
    manager = getattr(env, "observation_manager", None)
    if manager is None:
        raise ConfigurationError(
            f"isaaclab.features: {feature.text!r}: a direct task has no named terms; take columns:GROUP:START:STOP"
        )
    if group not in manager.active_terms:
        raise ConfigurationError(
            f"isaaclab.features: {feature.text!r}: no group {group!r}. {nearest(group, manager.active_terms)}"
        )
    names = manager.active_terms[group]
    if term not in names:
        raise ConfigurationError(f"isaaclab.features: {feature.text!r}: no term {term!r}. {nearest(term, names)}")
    sizes = [torch.Size(shape).numel() for shape in manager.group_obs_term_dim[group]]
    index = names.index(term)
    start = sum(sizes[:index])
    return lambda groups: groups[group][:, start : start + sizes[index]], "1"


def _columns(env: Any, feature: Feature) -> tuple[Reader, str]:
    group, start, stop = feature.parts[0], int(feature.parts[1]), int(feature.parts[2])
    if group not in env.obs_buf:
        raise ConfigurationError(
            f"isaaclab.features: {feature.text!r}: no group {group!r}. {nearest(group, env.obs_buf)}"
        )
    width = env.obs_buf[group].shape[1]
    if stop > width:
        raise ConfigurationError(f"isaaclab.features: {feature.text!r}: the group {group!r} has {width} columns")
    return lambda groups: groups[group][:, start:stop], "1"
