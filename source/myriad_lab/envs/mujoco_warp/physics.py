"""The engine under the simulator: worlds of one model on a device, and one control step of them as a graph."""

from __future__ import annotations

import logging

import torch

from myriad_lab.envs.mujoco.compat import mujoco
from myriad_lab.envs.mujoco_warp.capacity import Capacity, make_data, without_autoreset
from myriad_lab.envs.mujoco_warp.compat import mjw, wp
from myriad_lab.errors import ConfigurationError

log = logging.getLogger(__name__)

_STATE = ("qpos", "qvel", "ctrl", "qacc_warmstart", "time")
"""Everything that the next step depends on in our scenes, which have neither mocap bodies nor activations."""


class WarpPhysics:
    """``num_envs`` worlds; the tensors are live views of the engine's arrays (float32), one row per world.

    On a CUDA device one control step is captured once in a CUDA graph and replayed on torch's current stream; on the
    CPU the same kernels run one after the other. ``sensordata`` describes the last physics step.
    """

    def __init__(
        self, model: mujoco.MjModel, num_envs: int, device: torch.device, capacity: Capacity, num_steps: int
    ) -> None:
        """Allocate everything, compile or load the kernels and capture the graph.

        Args:
            model: The scene.
            num_envs: Number of worlds.
            device: Where they live.
            capacity: Room for contacts and constraints.
            num_steps: Physics steps of one control step.

        Raises:
            ConfigurationError: The device cannot run the engine's graphs, or the model has what the engine lacks.
        """
        wp.init()
        device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0": Warp looks devices up by number
        check_driver(device)
        self._place = wp.device_from_torch(device)
        self._torch_device = device
        self._num_steps = num_steps
        with wp.ScopedDevice(self._place):
            try:
                self._model = mjw.put_model(without_autoreset(model))
            except NotImplementedError as error:
                raise ConfigurationError(f"MuJoCo-Warp cannot simulate this scene: {error}") from error
            self._model.opt.warn_overflow = 0  # the kernels would print, from every env and at every step
            if device.type == "cuda":  # one thread of a CPU adds in one order anyway
                self._model.opt.deterministic = torch.are_deterministic_algorithms_enabled()
                if self._model.opt.deterministic:
                    log.warning("MuJoCo-Warp finds contacts in any order: runs with contacts differ in the last bits.")
            self._data = make_data(model, num_envs, capacity)
        wp.synchronize_device(self._place)  # Warp has filled the arrays on a stream of its own
        self.qpos, self.qvel, self.ctrl, self.sensordata, self.overflow = (
            wp.to_torch(getattr(self._data, name)) for name in ("qpos", "qvel", "ctrl", "sensordata", "overflow")
        )
        self._state = {name: wp.to_torch(getattr(self._data, name)) for name in _STATE}
        self._default = {name: tensor[:1].clone() for name, tensor in self._state.items()}
        self._graph = self._capture() if device.type == "cuda" else None

    def advance(self) -> None:
        """Advance all worlds by one control step."""
        if self._graph is None:
            self._run()
        else:
            with torch.cuda.device_of(self.qpos):  # a stream without a number is that of the current device
                wp.capture_launch(self._graph, stream=wp.stream_from_torch(self._torch_device))

    def put(self, env_ids: torch.Tensor, qpos: torch.Tensor, qvel: torch.Tensor) -> None:
        """Start worlds (long ids) afresh from the given positions and velocities; nothing is computed."""
        for name, tensor in self._state.items():
            tensor[env_ids] = self._default[name]
        self.qpos[env_ids] = qpos
        self.qvel[env_ids] = qvel

    def put_default(self, where: torch.Tensor) -> None:
        """Start worlds afresh in the model's default state, bool ``(num_envs,)``; the host does not wait."""
        for name, tensor in self._state.items():
            mask = where.view(-1, *[1] * (tensor.dim() - 1))
            torch.where(mask, self._default[name], tensor, out=tensor)

    def get_state(self) -> dict[str, torch.Tensor]:
        """Return a copy of everything the next step depends on."""
        return {name: tensor.clone() for name, tensor in self._state.items()}

    def set_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what ``get_state`` returned."""
        for name, tensor in self._state.items():
            tensor.copy_(state[name])

    def _run(self) -> None:
        with wp.ScopedDevice(self._place):
            for _ in range(self._num_steps):
                mjw.step(self._model, self._data)

    def _capture(self) -> wp.Graph:
        """Return one control step as a graph; the state is what it was."""
        before = self.get_state()
        torch.cuda.synchronize(self._torch_device)  # torch and Warp use different streams here
        self._run()  # kernels are compiled and loaded by their first launch, which a capture does not allow
        with wp.ScopedCapture(device=self._place) as capture:
            self._run()
        wp.synchronize_device(self._place)
        self.set_state(before)
        self.overflow.zero_()
        assert capture.graph is not None
        return capture.graph


def check_driver(device: torch.device) -> None:
    """Refuse a device that Warp does not see, or one without the graphs whose loops end on the device.

    Raises:
        ConfigurationError: If the driver is too old for this build of Warp, or for conditional nodes, which end the
            solver's loop where it has converged.
    """
    if device.type != "cuda":
        return
    instead = (
        "update the NVIDIA driver (Warp from PyPI is built for CUDA 13 and needs R580 or newer), or install Warp's "
        "wheel for CUDA 12 (+cu12, at github.com/NVIDIA/warp/releases), or use --backend mujoco"
    )
    found = wp.get_cuda_device_count()
    if (device.index or 0) >= found:
        raise ConfigurationError(
            f"backend mujoco_warp on {device}: Warp {wp.config.version} sees {found} CUDA devices, torch "
            f"{torch.cuda.device_count()}; {instead}"
        )
    if not wp.is_conditional_graph_supported():
        raise ConfigurationError(
            f"backend mujoco_warp on {device} needs a driver of CUDA 12.4 or newer, for graphs with loops; {instead}"
        )
