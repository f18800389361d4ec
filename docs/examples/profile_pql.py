"""Where the time of an update of parallel Q-learning goes, by kind of operation.

    python docs/examples/profile_pql.py mixed_precision=true critic.kind=categorical critic.num_atoms=101

One head, networks 512-256-128, minibatches of 8192 rows drawn from the replay memory; settings of ``PQLCfg`` and of its
critic as arguments. With ``PYTHONPATH=CHECKOUT/source`` it profiles another version of the package.
"""

import statistics
import sys
import time

import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from myriad_lab.algorithms.algorithm import Step
from myriad_lab.algorithms.pql import PQL, PQLCfg
from myriad_lab.networks.population import PopulationActor, PopulationActorCfg
from myriad_lab.networks.q_ensemble import QEnsembleCfg

NUM_OBS, NUM_ACTIONS, NUM_ENVS, ROWS, CALLS = 88, 16, 1024, 8192, 10
KINDS = {  # the first that is part of an operation's name; the rest is element by element
    "products": ("mm", "linear", "mkldnn"),
    "normalisation": ("layer_norm", "batch_norm"),
    "optimiser and targets": ("adam", "foreach", "lerp"),
    "gathers and scatters": ("index", "gather", "scatter"),
    "copies and casts": ("copy", "cat", "repeat", "stack", "clone"),
}


def make(arguments: list[str]) -> PQL:
    """Return a learner with a full replay memory."""
    given = OmegaConf.to_container(OmegaConf.from_dotlist(arguments))
    shape = {"hidden": [512, 256, 128], "activation": "elu", **given.pop("critic", {})}
    sizes = {"batch_size": ROWS, "warmup_steps": 1, "replay_capacity": 64 * NUM_ENVS}
    cfg = PQLCfg(**{**sizes, "critic": QEnsembleCfg(**shape), **given})
    policy = PopulationActorCfg(trunk=[512, 256], adapter_dim=128, activation="elu", obs_normalization=True)
    learner = PQL(PopulationActor(NUM_OBS, NUM_ACTIONS, 1, policy), cfg, NUM_ENVS, {"policy": NUM_OBS})
    for _ in range(60):
        obs, next_obs = (TensorDict({"policy": torch.randn(NUM_ENVS, NUM_OBS)}, [NUM_ENVS]) for _ in range(2))
        flags = torch.rand(2, NUM_ENVS) < 0.02
        actions, rewards = torch.rand(NUM_ENVS, NUM_ACTIONS) * 2.0 - 1.0, torch.rand(NUM_ENVS)
        valid = torch.ones(NUM_ENVS, dtype=torch.bool)
        learner.observe(Step(obs, actions, rewards, flags[0], flags[1], next_obs, next_obs, valid))
    return learner


def profile(name, update, calls=CALLS) -> None:
    """Print the time of an update, and how it is made up of the operations' own times."""
    for _ in range(min(3, calls)):
        update()
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        update()
        times.append(time.perf_counter() - started)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        for _ in range(calls):
            update()
    shares = dict.fromkeys([*KINDS, "element by element"], 0.0)
    for event in recorded.key_averages():
        key = event.key.lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in key for part in parts)), "element by element")
        shares[kind] += event.self_cpu_time_total / 1e3 / calls
    print(f"{name}: {1e3 * statistics.median(times):.1f} ms; profiled {sum(shares.values()):.1f} ms:")
    for kind, spent in shares.items():
        print(f"    {kind:24} {spent:8.1f} ms")


if __name__ == "__main__":
    torch.manual_seed(0)
    learner = make(sys.argv[1:])
    profile("critic update", lambda: learner.value_update(learner.sample()))
    profile("policy update", lambda: learner.policy_update(learner.sample()))
