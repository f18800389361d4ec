"""Stacked twin critics against a loop over plain networks, and both ways through their first layer."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import elu, layer_norm

from myriad_lab.networks.q_ensemble import QEnsemble, QEnsembleCfg

M, BATCH, NUM_OBS, NUM_ACTIONS = 3, 7, 5, 2


def make(**cfg) -> QEnsemble:
    critic = QEnsemble(NUM_OBS, NUM_ACTIONS, M, QEnsembleCfg(hidden=[8, 6], activation="elu", **cfg))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    critic.update_normalizer(3.0 * torch.randn(50, NUM_OBS, generator=generator) + 1.0)
    return critic


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(M, BATCH, NUM_OBS, generator=generator), torch.rand(M, BATCH, NUM_ACTIONS, generator=generator)


@pytest.mark.parametrize("kind", ["scalar", "categorical"])
@pytest.mark.parametrize("norm", [True, False], ids=["layer norm", "no norm"])
def test_stacked_critics_equal_a_loop_of_plain_networks(kind: str, norm: bool) -> None:
    critic = make(kind=kind, layer_norm=norm, num_atoms=4)
    obs, actions = rows()
    out = critic(obs, actions)
    for head in range(M):
        for twin in range(2):
            row = 2 * head + twin
            hidden = torch.cat([critic.normalizer(obs[head]), actions[head]], dim=-1)
            for layer in range(2):
                hidden = hidden @ critic.weights[layer][row]
                if norm:
                    hidden = layer_norm(hidden, hidden.shape[-1:]) * critic.scales[layer][row]
                hidden = elu(hidden + critic.biases[layer][row])
            expected = hidden @ critic.weights[2][row] + critic.biases[2][row]
            found = out[head, twin]
            torch.testing.assert_close(found, expected if kind == "categorical" else expected.squeeze(-1))


def test_a_slope_along_the_actions_changes_no_value_and_is_the_slope() -> None:
    critic = make().requires_grad_(False)
    obs, actions = rows()
    sloped = actions.clone().requires_grad_()
    values = critic.values(obs, sloped)
    torch.testing.assert_close(values.detach(), critic.values(obs, actions))
    (slope,) = torch.autograd.grad(values.sum(), sloped)
    step = 1e-2
    for i in range(NUM_ACTIONS):
        moved = torch.zeros(NUM_ACTIONS)
        moved[i] = step
        rise = critic.double().values(obs.double(), (actions + moved).double())
        fall = critic.double().values(obs.double(), (actions - moved).double())
        numeric = (rise - fall).sum(1) / (2.0 * step)
        torch.testing.assert_close(slope[..., i].double(), numeric, rtol=2e-2, atol=2e-2)
