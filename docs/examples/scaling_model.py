"""K-Myriad on 8 to 512 GPUs, on paper: bytes and time of one iteration, from the constants below.

    python docs/examples/scaling_model.py

Nothing here was measured on a GPU; docs/scaling.md says where each constant is from.
"""

from __future__ import annotations

import math

ENVS, STEPS, STRIDE, FEATURES = 1_000_000, 300, 5, 2  # of all ranks; control steps of an episode; default stride; x, y
EPOCHS, MINIBATCHES, DRAWN = 4, 8, 131_072  # defaults of agent.*; agent.max_particles
TRUNK = (48 * 512 + 512 + 512 * 256 + 256) + (49 * 512 + 512 + 512 * 256 + 256)  # actor and value function
HEAD = (256 * 256 + 256 + 256 * 8 + 8 + 8) + (256 * 256 + 256 + 256 + 1)
STEP_BYTES = 4 * (48 + 8 + 1 + FEATURES) + 1  # of the rollout storage, for each env and step
UPDATE_BYTES = 4 * (2 * 49 + 8 + 7) + 1  # of its copy by policy, with advantages and returns, for each env and step
ROW_BYTES = 4 * 2 * 2 * (512 + 256 + 256)  # policy and values with their gradients, for a row of a minibatch

RATES = (3e5, 3e6)  # env steps per second of one full GPU, assumed: a legged robot, and a light one
MIN_STEP = 1e-3  # time of one step of all envs of a GPU, however few they are [s], assumed: launching its kernels
FLOPS = 1e14  # of matrix products, assumed
PAIRS = 2.8e12  # pairs of a query and a reference per second: a third of the floor of selection
NORMALS = 5e10  # normal numbers drawn per second, assumed
NVLINK, NETWORK = 370e9, 45e9  # bytes per second of one GPU in its machine, and between machines
MACHINE = 8  # GPUs


def reduce_seconds(size: float, gpus: int) -> float:
    """All-reduce by trees: latencies of NCCL's own model (LL), bytes up and down at the slower of the two links."""
    nodes = max(1, gpus // MACHINE)
    intra = 0.52e-6 * (1.8 if nodes > 1 else 1.0)
    latency = 4.4e-6 + 2 * ((MACHINE - 1) * intra + math.log2(nodes) * 5e-6)
    return latency + 2 * size / (NVLINK if nodes == 1 else NETWORK)


def gather_seconds(size: float, gpus: int) -> float:
    """All-gather by a ring: latency of a hop to each other rank, every byte passes every rank."""
    nodes = max(1, gpus // MACHINE)
    intra = 0.47e-6 * (1.8 if nodes > 1 else 1.0)
    latency = 3.6e-6 + (gpus - nodes) * intra + (nodes - 1) * 2.7e-6
    return latency + size / (NVLINK if nodes == 1 else NETWORK)


def iteration(gpus: int, rate: float, references: int | None) -> dict[str, float]:
    """Return the seconds of each part.

    Args:
        gpus: Number of ranks.
        rate: Env steps per second of a GPU.
        references: Every particle is rewarded against as many; ``None``: ``DRAWN`` particles against each other.
    """
    particles = ENVS * STEPS // STRIDE
    pool = DRAWN if references is None else references
    queries = (DRAWN if references is None else particles) / gpus
    updates = EPOCHS * MINIBATCHES
    work = 2 * (TRUNK + HEAD) * STEPS * ENVS * (0.5 + 3 * EPOCHS)
    messages = updates * reduce_seconds(4 * TRUNK, gpus) + 20 * reduce_seconds(4, gpus)
    gathers = 2 * gather_seconds(pool * (4 * FEATURES + 8), gpus) + gather_seconds(1e5, gpus)
    searches = (queries + 2 * DRAWN / gpus) * pool / PAIRS  # rewards; entropy; divergences of the heads
    return {
        "physics": STEPS * max(MIN_STEP, ENVS / gpus / rate),
        "noise": STEPS * ENVS * 8 / NORMALS,
        "networks": work / gpus / FLOPS,
        "k-NN": searches,
        "gradients": messages,
        "gathers": gathers,
    }


def main() -> None:
    particles = ENVS * STEPS // STRIDE
    print(
        f"trunk gradient {4 * TRUNK / 1e6:.2f} MB, one head {4 * HEAD / 1e6:.2f} MB, {particles / 1e6:.0f} M particles"
    )
    whole = particles**2 / PAIRS
    print(f"whole pool: {particles * (4 * FEATURES + 1) / 1e6:.0f} MB gathered, {whole:.0f} GPU seconds a search\n")
    for references in (None, 262_144):
        for rate in RATES:
            print(f"{rate:.0e} env steps/s; rewarded: " + (f"{DRAWN} particles" if references is None else "all"))
            first = sum(iteration(8, rate, references).values())
            for gpus in (8, 16, 64, 128, 512):
                parts = iteration(gpus, rate, references)
                total = sum(parts.values())
                row = "  ".join(f"{name} {1000 * seconds:.3g}" for name, seconds in parts.items())
                efficiency = 8 * first / (gpus * total)
                memory = ENVS / gpus * STEPS * (STEP_BYTES + UPDATE_BYTES + ROW_BYTES / MINIBATCHES) / 1e9
                print(f"{gpus:>5} GPUs [ms]: {row}  total {1000 * total:.4g}  {efficiency:.0%}  {memory:.3g} GB")


if __name__ == "__main__":
    main()
