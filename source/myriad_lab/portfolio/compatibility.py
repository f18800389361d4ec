"""Say whether a bundle fits an env, and if not, what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from myriad_lab.errors import CheckpointError
from myriad_lab.portfolio.atomic import plain_json
from myriad_lab.portfolio.manifest import Manifest


class Spec(Protocol):
    """What is needed of an ``EnvSpec``."""

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as plain containers."""
        ...


def check_resume(manifest: Manifest, spec: Spec | Mapping[str, Any], **asked: Any) -> None:
    """Make sure that training can go on: same specs, and the same of what is ``asked`` for.

    Args:
        manifest: That of the bundle.
        spec: That of the env.
        asked: Field of the manifest -> value, e.g. ``task``, ``algorithm``, ``num_envs`` and ``num_policies``.

    Raises:
        CheckpointError: With every difference in its message.
    """
    lines = [
        f"{name}: {ours} in the bundle, {value} asked for"
        for name, value in asked.items()
        if (ours := getattr(manifest, name)) != value
    ]
    lines += differences(_plain(manifest.spec), _plain(spec))
    _refuse("cannot resume from this bundle", lines, "Resume with the settings it was made with, or seed from it.")


def check_seed(manifest: Manifest, spec: Spec | Mapping[str, Any]) -> None:
    """Make sure that the policies can act in an env: same policy observation terms, same action spec, nothing else.

    Raises:
        CheckpointError: With every difference in its message.
    """
    env = _plain(spec)
    lines = differences(_seeding_part(_plain(manifest.spec)), _seeding_part(env))
    headline = f"the policies of this bundle, of {manifest.task}, do not fit the env, of {env.get('task')}"
    _refuse(headline, lines, "Choose a task with the same robot.")


def differences(bundle: Any, env: Any, where: str = "") -> list[str]:
    """Return one line for each place where two trees of JSON containers differ."""
    if isinstance(bundle, dict) and isinstance(env, dict):
        lines = []
        for key in sorted(bundle.keys() | env.keys()):
            name = f"{where}.{key}" if where else key
            if key not in env:
                lines.append(f"{name}: {_show(bundle[key])} in the bundle, absent in the env")
            elif key not in bundle:
                lines.append(f"{name}: absent in the bundle, {_show(env[key])} in the env")
            else:
                lines += differences(bundle[key], env[key], name)
        return lines
    if isinstance(bundle, list) and isinstance(env, list) and not _is_leaf(bundle) and not _is_leaf(env):
        lines = []
        for i in range(max(len(bundle), len(env))):
            ours, theirs = (items[i] if i < len(items) else None for items in (bundle, env))
            if ours is None or theirs is None or _show(ours) != _show(theirs):
                if ours != theirs:
                    lines.append(f"{where}[{i}]: {_show(ours)} in the bundle, {_show(theirs)} in the env")
            else:
                lines += differences(ours, theirs, f"{where}[{i}]")
        return lines
    return [] if bundle == env else [f"{where}: {_show(bundle)} in the bundle, {_show(env)} in the env"]


def _seeding_part(spec: Mapping[str, Any]) -> dict[str, Any]:
    policy = spec.get("observations", {}).get("policy", [])
    return {"observations": {"policy": policy}, "action": spec.get("action", {})}


def _plain(spec: Spec | Mapping[str, Any]) -> dict[str, Any]:
    """Return the specification as JSON containers, without the prose: another wording changes nothing."""
    plain = plain_json(dict(spec) if isinstance(spec, Mapping) else spec.to_dict())
    for terms in plain.get("observations", {}).values():
        for term in terms:
            term.pop("description", None)
    return plain


def _is_leaf(items: list[Any]) -> bool:
    return bool(items) and not any(isinstance(item, dict) for item in items)


def _show(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, dict) and {"name", "shape"} <= value.keys():
        return f"{value['name']} {tuple(value['shape'])} [{value.get('unit', '1')}]"
    return repr(value)


def _refuse(headline: str, lines: list[str], mend: str) -> None:
    if lines:
        raise CheckpointError("\n  ".join([f"{headline}:", *lines]) + f"\n{mend}")
