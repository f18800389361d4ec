"""Where the time of an update of K-Myriad goes, by kind of operation.

    python docs/examples/profile_kmyriad.py mixed_precision=true

32 policies of the default network, 1024 envs, rollouts of 25 steps, the default of 4 epochs of 8 minibatches; plain
settings of ``KMyriadCfg`` as arguments. The search of neighbours is not in it: ``scripts/benchmark.py knn`` times that.
"""

import sys

import torch
from omegaconf import OmegaConf
from profile_pql import profile

from myriad_lab.algorithms.kmyriad import KMyriadCfg
from myriad_lab.algorithms.policy_updates import ClippedUpdate
from myriad_lab.algorithms.population_optimizer import PopulationOptimizer
from myriad_lab.networks.population import PopulationActor, PopulationValue
from myriad_lab.storage.rollout import RolloutStorage

NUM_OBS, NUM_ACTIONS, NUM_POLICIES, NUM_ENVS, STEPS = 48, 8, 32, 1024, 25


def roll_out(actor: PopulationActor, autocast: torch.autocast) -> RolloutStorage:
    """Return a rollout of random observations."""
    widths = {"obs": (NUM_OBS,), "pre_squash": (NUM_ACTIONS,), "log_prob": ()}
    fields = {name: (width, torch.float32) for name, width in widths.items()} | {"valid": ((), torch.bool)}
    storage = RolloutStorage(STEPS, NUM_ENVS, NUM_POLICIES, fields)
    with torch.no_grad(), autocast:
        for _ in range(STEPS):
            obs, valid = torch.randn(NUM_ENVS, NUM_OBS), torch.ones(NUM_ENVS, dtype=torch.bool)
            sample = actor.act(obs)
            storage.append({"obs": obs, "pre_squash": sample.pre_squash, "log_prob": sample.log_prob, "valid": valid})
    return storage


if __name__ == "__main__":
    torch.manual_seed(0)
    cfg = KMyriadCfg(**OmegaConf.to_container(OmegaConf.from_dotlist(sys.argv[1:])))
    actor = PopulationActor(NUM_OBS, NUM_ACTIONS, NUM_POLICIES, cfg.actor)
    value = PopulationValue(NUM_OBS + 1, NUM_POLICIES, cfg.actor)
    update = ClippedUpdate(actor, value, PopulationOptimizer(actor, value, cfg), cfg, torch.Generator().manual_seed(0))
    storage, rewards = roll_out(actor, update.mixed_precision.autocast()), torch.randn(STEPS, NUM_ENVS)
    profile("update", lambda: update(storage, rewards, torch.tensor(float(STEPS * NUM_ENVS))), calls=3)
