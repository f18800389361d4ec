"""The interactive viewers of ``myriad play``: MuJoCo's, and those of Isaac Lab."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from myriad_lab.cli.play import MUJOCO, PlayCfg, open_heads, shown_heads
from myriad_lab.cli.scenes import env_colors, has_viewers, positions
from myriad_lab.errors import ConfigurationError

if TYPE_CHECKING:
    from myriad_lab.envs.contract import VecEnv
    from myriad_lab.portfolio.bundle import Bundle


def view(
    bundle: Bundle, cfg: PlayCfg | None = None, *, heads: Sequence[int] | None = None, overrides: Sequence[str] = ()
) -> None:
    """Show heads until the viewer is closed: one in MuJoCo's, all side by side in those of Isaac Lab.

    Args:
        bundle: What to show.
        cfg: Settings; ``cfg.viz`` names the viewers, ``mujoco`` where it is ``None``.
        heads: Heads to show; the first one in MuJoCo's viewer, all in the others, by default.
        overrides: ``env.key=value``.

    Raises:
        ConfigurationError: If there is no display for MuJoCo's viewer, or viewer and backend do not fit.
    """
    cfg = cfg or PlayCfg()
    if cfg.viz in (None, MUJOCO):
        _view_in_mujoco(bundle, cfg, [0] if heads is None else list(heads)[:1], overrides)
    else:
        _view_in_isaaclab(bundle, cfg, shown_heads(bundle.manifest.num_policies, heads), overrides)


def _view_in_mujoco(bundle: Bundle, cfg: PlayCfg, heads: Sequence[int], overrides: Sequence[str]) -> None:
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ConfigurationError("--viz needs a display, and there is none here; leave it out to get a film")
    with _opened(bundle, cfg, heads, overrides) as (env, policy):
        simulator: Any = getattr(env, "simulator", None)
        if not hasattr(simulator, "model"):
            raise ConfigurationError(
                f"MuJoCo's viewer shows tasks on the mujoco backend; {env.spec.task} runs on another. On backend "
                "isaaclab name one of its viewers, e.g. --viz viser"
            )
        import mujoco.viewer

        data = mujoco.MjData(simulator.model)
        obs = env.reset()
        with mujoco.viewer.launch_passive(simulator.model, data) as window:
            while window.is_running():
                with _real_time(env, cfg.speed):
                    obs = env.step(policy(obs))[0]
                    data.qpos[:] = positions(env)[0]
                    mujoco.mj_forward(simulator.model, data)
                    window.sync()


def _view_in_isaaclab(bundle: Bundle, cfg: PlayCfg, heads: Sequence[int], overrides: Sequence[str]) -> None:
    from myriad_lab.envs.isaaclab.viewer import HeadMarkers

    with _opened(bundle, cfg, heads, overrides) as (opened, policy):
        env: Any = opened  # an IsaacLabEnv, where it has viewers
        if not has_viewers(env):
            raise ConfigurationError(f"Isaac Lab has opened none of the viewers --viz {cfg.viz}")
        markers = HeadMarkers(env, env_colors(env, heads, bundle.manifest.num_policies))
        obs, step = env.reset(), 0
        while env.inner.sim.is_running() and (cfg.length is None or step < cfg.length):
            with _real_time(env, cfg.speed):
                markers.update()
                obs, step = env.step(policy(obs))[0], step + 1


@contextmanager
def _opened(
    bundle: Bundle, cfg: PlayCfg, heads: Sequence[int], overrides: Sequence[str]
) -> Iterator[tuple[VecEnv, Callable[[Any], Any]]]:
    """Open env and policy, without gradients, and close them."""
    import torch

    env, policy = open_heads(bundle, cfg, heads, overrides)
    try:
        with torch.inference_mode():
            yield env, policy
    finally:
        env.close()


@contextmanager
def _real_time(env: VecEnv, speed: float) -> Iterator[None]:
    """Let what is done in it take as long as a control step takes on the clock, where it is faster."""
    started = time.perf_counter()
    yield
    time.sleep(max(0.0, env.spec.control_period / speed - (time.perf_counter() - started)))
