"""The parts of an update that the ranks of a population do together, and what each has of an optimiser for itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from myriad_lab.algorithms.pql_parts import restore
from myriad_lab.functional.collective import Collective
from myriad_lab.networks.population import PopulationActor
from myriad_lab.networks.q_ensemble import QEnsemble, QEnsembleCfg
from myriad_lab.networks.stacked import collect_state, load_own_state


def own_critics(num_obs: int, actor: PopulationActor, cfg: QEnsembleCfg, seed: int, ranks: Collective) -> QEnsemble:
    """Return the critics of this rank's heads, those of ``actor``; all ranks draw the weights of all of them."""
    all_heads, weights = ranks.world_size * actor.num_policies, torch.Generator().manual_seed(seed)
    critics = QEnsemble(num_obs, actor.num_actions, all_heads, cfg, weights)
    return critics if ranks.world_size == 1 else critics.select(range(all_heads)[ranks.block(all_heads)])


def grad_norm(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """Return the norm of the gradients, a scalar; parameters without one count as zero."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.stack(torch._foreach_norm(grads)).norm() if grads else torch.zeros(())


def clip_gradients(parameters: Sequence[nn.Parameter], norm: torch.Tensor, bound: float) -> None:
    """Scale gradients whose norm, together with others perhaps, is ``norm``, so that it is at most ``bound``."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(grads, (bound / (norm + 1e-6)).clamp_max(1.0))


def sum_gradients(
    shared: Sequence[nn.Parameter], norms: Sequence[torch.Tensor], ranks: Collective
) -> list[torch.Tensor]:
    """Sum the gradients of what ranks share, and join norms of what each has for itself; all in one message.

    A message of its own for each tensor would cost the latency of the network a dozen times over.

    Args:
        shared: Parameters of which every rank has a copy; their gradients are replaced by the sums.
        norms: Norms of this rank's own gradients, scalars.
        ranks: Those that train one population.

    Returns:
        The norms over all ranks.
    """
    if ranks.world_size == 1:
        return list(norms)
    grads = [parameter.grad for parameter in shared if parameter.grad is not None]
    bucket = torch.cat([*(grad.flatten() for grad in grads), torch.stack(list(norms)).square()])
    *summed, squares = ranks.sum(bucket).split([*(grad.numel() for grad in grads), len(norms)])
    torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(summed, grads, strict=True)])
    return list(squares.sqrt().unbind())


def sum_and_clip(shared: Sequence[nn.Parameter], own: Sequence[nn.Parameter], bound: float, ranks: Collective) -> None:
    """Sum the gradients of what ranks share, and scale all gradients so that their norm over all ranks is bounded.

    Args:
        shared: Parameters of which every rank has a copy.
        own: Parameters that this rank alone has.
        bound: Largest norm.
        ranks: Those that train one population.
    """
    (of_own,) = sum_gradients(shared, [grad_norm(own)], ranks)
    clip_gradients([*shared, *own], torch.hypot(grad_norm(shared), of_own), bound)


def stacked_numbers(network: Any) -> set[int]:
    """Return which parameters of a network have the head as first axis, by their numbers in an optimiser of all."""
    stacked = set(network.stacked_names())
    return {i for i, (name, _) in enumerate(network.named_parameters()) if name in stacked}


def change_moments(
    states: Mapping[int, Mapping[str, torch.Tensor]],
    stacked: Collection[int],
    change: Callable[[torch.Tensor], torch.Tensor],
) -> dict[int, dict[str, Any]]:
    """Return an optimiser's state with the moments of some parameters changed; the count of steps has no axis.

    Args:
        states: The entry ``state`` of the state dict: moments by number of the parameter.
        stacked: Numbers of the parameters whose first axis is the head.
        change: E.g. ``Collective.collect_rows`` to save, ``Collective.own_rows`` to restore.
    """
    return {
        i: {name: change(v) if i in stacked and v.dim() else v for name, v in state.items()}
        for i, state in states.items()
    }


def collect_learner(
    networks: Mapping[str, Any], optimizers: Mapping[str, torch.optim.Optimizer], ranks: Collective
) -> dict[str, Any]:
    """Return the states of networks, and of the optimisers of some of them as ``NAME_optimizer``, of all ranks."""
    state: dict[str, Any] = {name: collect_state(network, ranks) for name, network in networks.items()}
    for name, optimizer in optimizers.items():
        own = optimizer.state_dict()
        moments = change_moments(own["state"], stacked_numbers(networks[name]), ranks.collect_rows)
        state[f"{name}_optimizer"] = {**own, "state": moments}
    return state


def load_learner(
    networks: Mapping[str, Any],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Any],
    ranks: Collective,
) -> None:
    """Restore this rank's part of what ``collect_learner`` returned; settings of the optimisers stay.

    Raises:
        KeyError, RuntimeError, ValueError: If it belongs to other networks.
    """
    for name, network in networks.items():
        load_own_state(network, state[name], ranks)
    for name, optimizer in optimizers.items():
        saved = state[f"{name}_optimizer"]
        moments = change_moments(saved["state"], stacked_numbers(networks[name]), ranks.own_rows)
        restore(optimizer, {**saved, "state": moments})
