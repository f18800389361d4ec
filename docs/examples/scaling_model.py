"""K-Myriad and PQL on 8 to 512 GPUs, on paper: time of an iteration and of an env step, from a set of constants.

    python docs/examples/scaling_model.py
    python docs/examples/scaling_model.py --json docs/performance/cpu.json

The first takes the constants of an H200 from paper, the second those that ``scripts/benchmark.py`` measured, and says
first how well the model tells what the case ``ranks`` took there. docs/scaling.md says where the constants are from.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from myriad_lab.cli.benchmarks.floors import Updates
from myriad_lab.cli.benchmarks.line import BenchmarkLine
from myriad_lab.cli.benchmarks.record import read_record
from myriad_lab.errors import CheckpointError, ConfigurationError

ENVS, POLICIES, MACHINE = 1_000_000, 512, 8  # envs and heads of all ranks; GPUs of a machine
DRAWN, FEATURES, SEARCHES = 131_072, 2, 3  # agent.max_particles; x, y; rewards, entropy, divergences of the heads
NETWORK = 45e9  # bytes per second of one GPU between machines
SORTED = 1e9  # points sorted along a curve per second, which every rank does with the whole pool; assumed
MEMORY = 4.3e12  # bytes per second of a GPU's memory
LAUNCH = 5e-6  # of a kernel that is not part of a CUDA graph [s]; assumed, as are the numbers of kernels
KERNELS = {"act": 40, "minibatch": 200, "observe": 40, "policy update": 150}  # with several ranks none is a graph


class Cost(NamedTuple):
    """Time of a work by its size."""

    latency: float
    """Of the smallest work [s]."""
    rate: float
    """Size per second, beyond that."""

    def __call__(self, size: float) -> float:
        return self.latency + size / self.rate


@dataclass(frozen=True)
class Constants:
    """What one GPU, or one core, can do."""

    physics: dict[str, Cost]
    """Kind of env -> time of one control step, by envs."""
    act: float
    """FLOP/s of a forward pass of the population."""
    update: float
    """FLOP/s of its gradient steps, forward and backward."""
    learner: Cost
    """An update of PQL's critics, by FLOP."""
    normals: float
    """Normal numbers drawn per second."""
    queries: float
    """Nearest neighbours found per second in up to three features, in a tree of boxes."""
    pairs: float
    """Pairs of a query and a reference per second in more features."""
    reduce: Cost
    """All-reduce within one machine, by bytes."""
    gather: Cost
    """All-gather within one machine, by bytes of all ranks together."""


PAPER = Constants(
    physics={"legged": Cost(1e-3, 3e5), "light": Cost(1e-3, 3e6)},
    act=1e14,
    update=1e14,
    learner=Cost(0.2e-3, 2e14),
    normals=5e10,
    queries=1e8,
    pairs=4096e6 / 0.86e-3,
    reduce=Cost(4.4e-6 + 14 * 0.52e-6, 370e9 / 2),
    gather=Cost(3.6e-6 + 7 * 0.47e-6, 370e9),
)


@dataclass(frozen=True)
class Pretraining:
    """One iteration of K-Myriad; networks 512-256 with an adapter of 256, rewards of every fifth step."""

    envs: int = ENVS
    steps: int = 300
    obs: int = 48
    actions: int = 8
    epochs: int = 4
    minibatches: int = 8
    queries: int = DRAWN
    """Particles that are rewarded."""
    pool: int = DRAWN
    """Particles among which their neighbours are searched."""

    @property
    def actor(self) -> tuple[int, int]:
        """Parameters of the trunk and of a head."""
        return _trunk(self.obs), 256 * 256 + 256 + 256 * self.actions + 2 * self.actions

    @property
    def value(self) -> tuple[int, int]:
        """The same of the value function, which a single step does without."""
        return (_trunk(self.obs + 1), 256 * 256 + 256 + 256 + 1) if self.epochs > 1 else (0, 0)

    @property
    def row_bytes(self) -> float:
        """Of an env step: the rollout, its copy by policy, and its share of a minibatch with gradients [B]."""
        rollout = 4 * (self.obs + self.actions + 1 + FEATURES) + 1
        copy = 4 * (2 * (self.obs + 1) + self.actions + 7) + 1
        return rollout + copy + 4 * 2 * 2 * (512 + 256 + 256) / self.minibatches

    def seconds(self, ranks: int, physics: Cost, c: Constants, slower: float = 1.0) -> dict[str, float]:
        """Return the seconds of each part; computing takes ``slower`` times as long as the constants tell.

        Messages take as long as between ranks that do nothing else: nobody waits for the slowest.
        """
        rows, once = self.steps * self.envs / ranks, self.epochs == 1
        updates = 1 if once else self.epochs * self.minibatches
        act = max(self.steps * launched("act"), 2 * rows * sum(self.actor) / c.act)
        values = 2 * rows * sum(self.value) / c.act  # of all rows, before the epochs
        learn = 2 * rows * 3 * self.epochs * (sum(self.actor) + sum(self.value)) / c.update
        learn = max(updates * launched("minibatch"), learn)
        queries = (self.queries + (SEARCHES - 1) * min(self.queries, self.pool)) / ranks
        work = {
            "physics": self.steps * physics(self.envs / ranks),
            "networks": act + values + learn,
            "noise": self.steps * self.envs * self.actions / c.normals,
            "k-NN": queries / c.queries + SEARCHES * self.pool / SORTED,
        }
        trunk = 4 * (self.actor[0] + self.value[0])
        messages = {
            "gradients": updates * reduce_seconds(trunk, ranks, c) + 20 * reduce_seconds(4, ranks, c),
            "gathers": 2 * gather_seconds(self.pool * (4 * FEATURES + 8), ranks, c) + gather_seconds(1e5, ranks, c),
        }
        return {name: slower * seconds for name, seconds in work.items()} | messages


@dataclass(frozen=True)
class Finetuning:
    """One env step of PQL with what it earns: a critic update, half a policy update; the defaults of docs/pql.md."""

    rows: int = 256
    """Of a minibatch of one head."""
    obs: int = 48
    actions: int = 8

    def seconds(self, ranks: int, physics: Cost, c: Constants) -> dict[str, float]:
        """Return the seconds of each part."""
        envs, heads = ENVS / ranks, POLICIES / ranks
        batch = round(heads * self.rows)
        # the policy, 256-128 with an adapter of 128, is taken for as large as a critic's hidden layers
        shape, trunk = Updates(self.obs, self.actions, (256, 256), 101), self.obs * 256 + 256 * 128 + 384
        policy = trunk + 128 * 128 + 128 * self.actions
        critic = 2 * ((self.obs + self.actions) * 256 + 256 * 256 + 256 * 101 + 613)
        row = self.replay_row
        update_critics = shape.critic_bytes(batch, 2 * row, round(heads * critic)) / MEMORY
        update_policies = shape.policy_bytes(batch, round(heads * policy)) / MEMORY
        return {
            "physics": physics(envs),
            "act": max(launched("act"), 2 * envs * policy / c.act + envs * self.actions / c.normals),
            "observe": max(launched("observe"), 2 * envs * row / MEMORY),
            "critics": c.learner(shape.critic_flops(batch)) + update_critics,
            "policies": (launched("policy update") + shape.policy_flops(batch) / c.learner.rate + update_policies) / 2,
            "trunk": reduce_seconds(4 * trunk + 8 * heads, ranks, c) / 2,
            "statistics": 3 * gather_seconds(8 * self.obs * ranks, ranks, c),
        }

    @property
    def replay_row(self) -> int:
        """Bytes of a transition: observation and action in float32, and 54 for the rest (docs/performance.md)."""
        return 4 * (self.obs + self.actions) + 54


def launched(work: str) -> float:
    """Return how long the host takes to launch the kernels of a work one by one [s]."""
    return LAUNCH * KERNELS[work]


def reduce_seconds(size: float, ranks: int, c: Constants) -> float:
    """All-reduce: within one machine as measured; between machines latency and bytes of NCCL's trees in addition."""
    machines = ranks // MACHINE
    if ranks == 1 or machines <= 1:
        return 0.0 if ranks == 1 else c.reduce(size)
    return c.reduce.latency + 2 * (7 * 0.42e-6 + math.log2(machines) * 5e-6) + 2 * size / NETWORK


def gather_seconds(size: float, ranks: int, c: Constants) -> float:
    """All-gather: within one machine as measured; a ring through all machines hop by hop."""
    machines = ranks // MACHINE
    if ranks == 1 or machines <= 1:
        return 0.0 if ranks == 1 else c.gather(size)
    hops = (ranks - machines - 7) * 0.85e-6 + (machines - 1) * 2.7e-6
    return c.gather.latency + hops + size / NETWORK


class Measured:
    """Times of a record, by name.

    Raises:
        ConfigurationError: Where a line is asked for that the record lacks.
    """

    def __init__(self, path: Path) -> None:
        record = read_record(path)
        self.path, self.machine = path, record["machine"]
        self.device = record["device"].split(":")[0]  # cuda:0
        self.lines = [(result["benchmark"], line) for result in record["results"] for line in result["lines"]]
        iterations = [line.name for _, line in self.lines if line.name.startswith("rollout and update, one step")]
        self.ranks = max((int(name.split()[-2]) for name in iterations), default=2)

    def find(self, benchmark: str, name: str, size: str = "") -> list[BenchmarkLine]:
        """Return the lines of this name, of one size or of all."""
        found = [x for of, x in self.lines if (of, x.name) == (benchmark, name) and size in ("", x.size)]
        if found:
            return found
        hint = "; where there is one GPU only, take messages from paper: --messages paper" if "all-" in name else ""
        raise ConfigurationError(
            f"{self.path} lacks {name!r}{f' of {size}' if size else ''}, which the model needs; measure it with: "
            f"python scripts/benchmark.py {benchmark} --device {self.device} --json {self.path}{hint}"
        )

    def cost(self, benchmark: str, name: str, unit: float = 1.0) -> Cost:
        """Return the line through the smallest and the largest size of a work; ``unit`` is what a size stands for."""
        sizes = sorted((_size(line) * unit, line.measured_s) for line in self.find(benchmark, name))
        (small, first), (large, last) = sizes[0], sizes[-1]
        if large == small or last <= first:
            raise ConfigurationError(
                f"{self.path}: a latency and a rate of {name!r} need two sizes of which the larger takes longer; "
                f"{len(sizes)} are there. Remove the file and measure it anew."
            )
        rate = (large - small) / (last - first)
        return Cost(max(0.0, first - small / rate), rate)

    def constants(self, paper_messages: bool = False) -> Constants:
        """Return the constants of this machine; those of messages are of paper where it has a single GPU."""
        known = Pretraining()
        batch = 65_536 if self.device == "cuda" else 4096
        (noise,) = self.find("ranks", f"action noise, drawn for all ranks, {self.ranks} ranks")
        plane, eight = (max(self.find("knn", f"k-NN, d={d}"), key=_pairs) for d in (2, 8))
        small = Updates(88, 16, (512, 256, 128)).critic_flops(1)
        return Constants(
            physics={
                "legged": self.cost("env", f"env step, Myriad-Ant{' on mujoco_warp' if self.device == 'cuda' else ''}"),
                "light": self.cost("env", "env step, Myriad-PointMaze-Maze"),
            },
            act=2 * batch * sum(known.actor) / self.population("act", batch),
            update=6 * batch * sum(known.actor) / self.population("update", batch),
            learner=self.cost("learner", "critic update, S bf16", unit=small),
            normals=int(noise.size.split()[0]) * 8 / noise.measured_s,
            queries=int(plane.size.split()[0]) / plane.measured_s,
            pairs=_pairs(eight) / eight.measured_s,
            reduce=PAPER.reduce
            if paper_messages
            else self.cost("ranks", f"all-reduce in one message, {self.ranks} ranks"),
            gather=PAPER.gather if paper_messages else self.cost("ranks", f"all-gather, {self.ranks} ranks"),
        )

    def population(self, work: str, envs: int) -> float:
        """Return the time of acting or of an update of 32 policies, in the precision that is faster."""
        names = [f"population {work}, {precision}, {envs} envs" for precision in ("fp32", "bf16")]
        return min(self.find("population", name, "m = 32")[0].measured_s for name in names)

    def compare(self, c: Constants) -> list[tuple[str, int, float, float]]:
        """Return work, ranks, predicted and measured seconds of the iterations that ``ranks`` timed."""
        rows = []
        for what, epochs in (("one step", 1), ("4 epochs", 4)):
            (line,) = self.find("ranks", f"rollout and update, {what}, {self.ranks} ranks", "1024 envs, 32 policies")
            alone = float(line.note.split()[-2]) / 1000  # 1 rank 1781 ms
            job = Pretraining(1024, 50, 10, 2, epochs, queries=10_240, pool=10_240)
            for ranks, seconds in {1: alone, self.ranks: line.measured_s}.items():
                parts = job.seconds(ranks, c.physics["light"], c, self.slower(ranks))
                rows.append((what, ranks, sum(parts.values()), seconds))
        return rows

    def slower(self, ranks: int) -> float:
        """A rank has one thread there, and on a CPU a core only where there are enough; the constants have them all."""
        if self.device == "cuda":
            return 1.0
        return self.machine["threads"] * max(1.0, ranks / self.machine["cores"])


def _trunk(obs: int) -> int:
    return obs * 512 + 512 + 512 * 256 + 256


def _pairs(line: BenchmarkLine) -> int:
    queries, _, points = line.size.split()[:3]  # 4096 of 65536 points, d=2, k=5
    return int(queries) * int(points)


def _size(line: BenchmarkLine) -> float:
    if line.x is not None:
        return line.x
    return 1e6 * float(line.size.split()[0]) if " MB" in line.size else 4.0


def _table(title: str, rows: dict[int, dict[str, float]], shared: float, everywhere: float = 0.0) -> None:
    print(f"\n{title} [ms]\nGPUs | {' | '.join(rows[8])} | total | efficiency | memory of a GPU")
    first = sum(rows[8].values())
    for gpus, parts in rows.items():
        total = sum(parts.values())
        memory = shared / gpus + everywhere
        told = " | ".join(f"{1000 * seconds:.3g}" for seconds in parts.values())
        print(f"{gpus} | {told} | {1000 * total:.4g} | {8 * first / (gpus * total):.0%} | {memory / 1e9:.3g} GB")


def print_model(c: Constants) -> None:
    """Print both algorithms at a million envs."""
    worlds, particles = (8, 64, 128, 512), ENVS * 300 // 5
    print(f"all pairs of {particles:.1e} particles in 8 features: {particles**2 / c.pairs:.0f} GPU seconds a search")
    print(f"all particles against 262,144 in 8 features: {particles * 262_144 / c.pairs:.3g} GPU seconds")
    jobs = {
        "131,072 drawn": Pretraining(),
        "all, against 262,144 of them": Pretraining(queries=particles, pool=262_144),
        "all, against all": Pretraining(queries=particles, pool=particles),
    }
    for kind, physics in c.physics.items():
        for rewarded, job in jobs.items():
            rows = {gpus: job.seconds(gpus, physics, c) for gpus in worlds}
            _table(
                f"K-Myriad, {kind}; rewarded: {rewarded}",
                rows,
                ENVS * job.steps * job.row_bytes,
                job.pool * (4 * FEATURES + 8),
            )
        for tuning in (Finetuning(), Finetuning(rows=4096)):
            rows = {gpus: tuning.seconds(gpus, physics, c) for gpus in worlds}
            drawn = POLICIES * tuning.rows / ENVS
            title = f"PQL, {kind}; {POLICIES} heads, {tuning.rows} rows each ({drawn:.2g} drawn per transition)"
            _table(title, rows, 100 * ENVS * tuning.replay_row)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the model; of a record of a CPU only how well the model tells what it holds."""
    parser = argparse.ArgumentParser(description="K-Myriad and PQL on 8 to 512 GPUs, on paper")
    parser.add_argument("--json", type=Path, help="record of scripts/benchmark.py with the constants; default: paper")
    parser.add_argument("--messages", choices=("measured", "paper"), default="measured", help="of the record or not")
    options = parser.parse_args(arguments)
    if options.json is None:
        return print_model(PAPER)
    measured = Measured(options.json)
    constants = measured.constants(options.messages == "paper")
    print("rollout and update | ranks | predicted [s] | measured [s] | predicted / measured")
    for what, ranks, predicted, seconds in measured.compare(constants):
        print(f"{what} | {ranks} | {predicted:.3g} | {seconds:.3g} | {predicted / seconds:.2f}")
    if measured.device == "cuda":
        print_model(constants)
    return None


if __name__ == "__main__":
    try:
        main()
    except (CheckpointError, ConfigurationError) as error:
        raise SystemExit(str(error)) from None
