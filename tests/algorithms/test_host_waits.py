"""No update waits for the device. On a CPU the operations are looked at; CUDA itself is asked where there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.utils._python_dispatch import _disable_current_modes

from host_waits import NoHostWaits, no_cuda_syncs
from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.kmyriad import KMyriad, KMyriadCfg
from myriad_lab.algorithms.pql import PQL, PQLCfg
from myriad_lab.functional import entropy, knn
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg

NUM_ENVS, M, NUM_OBS, NUM_ACTIONS = 16, 4, 3, 2
SIZES = {"policy": NUM_OBS, "critic": NUM_OBS, "features": 2}
KMYRIAD = {
    "one_step": {"num_epochs": 1},
    "one_step_mepol": {"num_epochs": 1, "reward": "mepol", "exclude_own_trajectory": True},
    "epochs": {"num_epochs": 3, "num_minibatches": 2},
    "adaptive": {"num_epochs": 3, "desired_kl": 0.02},
    "window": {"num_epochs": 1, "window": 2},
    "drawn": {"num_epochs": 1, "max_particles": 48},
}


def steps(num: int, device: str) -> list[Step]:
    """Return random transitions: the last step is a time-out, one env ends early, one diverges."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    def observe() -> TensorDict:
        return TensorDict({name: draw(NUM_ENVS, size) for name, size in SIZES.items()}, batch_size=[NUM_ENVS])

    out = []
    for t in range(num):
        valid, ends = torch.ones(NUM_ENVS, dtype=torch.bool), torch.zeros(NUM_ENVS, dtype=torch.bool)
        valid[3], ends[5] = t != 2, t == 2
        late = ~ends & ((torch.arange(NUM_ENVS) >= 0) if t == num - 1 else ~valid)
        valid, ends, late = valid.to(device), ends.to(device), late.to(device)
        actions = 2.0 * draw(NUM_ENVS, NUM_ACTIONS) - 1.0
        out.append(Step(observe(), actions, draw(NUM_ENVS), ends, late, observe(), observe(), valid))
    return out


def make(name: str, device: str, **settings: Any) -> Any:
    actor_cfg = PopulationActorCfg(trunk=[16], adapter_dim=8)
    actor = PopulationActor(NUM_OBS, NUM_ACTIONS, M, actor_cfg, torch.Generator().manual_seed(0)).to(device)
    if name == "pql":
        prior = {"prior_fraction": 0.5, "prior_bootstrap": True, "prior_weight": 0.1}
        settings = {"compile": False, "normalize_returns": True} | settings
        cfg = PQLCfg(batch_size=8, replay_capacity=640, warmup_steps=1, critic_warmup=1, **prior, **settings)
        return PQL(actor, cfg, NUM_ENVS, SIZES, device, seed=0, seeded=True)
    cfg = KMyriadCfg(actor=actor_cfg, k=2, particle_stride=1, **KMYRIAD[name])
    return KMyriad(actor, cfg, NUM_ENVS, SIZES, device, seed=0, num_steps=6)


@pytest.fixture
def search_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the search checks its values and asks a tree; what a GPU runs instead is tested on the meta device."""

    def exempt(search: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with _disable_current_modes():
                return search(*args, **kwargs)

        return run

    monkeypatch.setattr(entropy, "knn", exempt(knn.knn))
    monkeypatch.setattr(entropy, "knn_within", exempt(knn.knn_within))


@pytest.mark.parametrize(
    ("device", "watch"), [("cpu", NoHostWaits), pytest.param("cuda", no_cuda_syncs, marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("name", [*KMYRIAD, "pql"])
def test_acting_storing_and_learning_never_wait(search_apart: None, name: str, device: str, watch: Any) -> None:
    algorithm = make(name, device)
    for _ in range(2):
        ready = steps(6, device)
        with watch():
            for step in ready:
                algorithm.observe(replace(step, actions=algorithm.act(step.obs)))
            metrics = algorithm.update()
    assert ("Loss/actor" if name == "pql" else "Loss/surrogate") in metrics
