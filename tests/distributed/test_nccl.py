"""One rank over NCCL: what it sends itself comes back, in every type that is sent."""

from __future__ import annotations

import socket

import pytest
import torch

from myriad_lab.distributed.process_group import Place, ProcessGroup, settle_device

pytestmark = pytest.mark.gpu


def test_every_message_of_a_lone_rank_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    settle_device("cuda", Place())
    rows = torch.arange(6.0, device="cuda").view(3, 2)
    with ProcessGroup(Place()) as ranks:
        assert torch.equal(ranks.sum(rows), rows)
        for dtype in (torch.float32, torch.float64, torch.int64, torch.bool):
            assert torch.equal(ranks.gather_rows(rows.to(dtype)), rows.to(dtype))
            assert torch.equal(ranks.gather_rows(rows.T.to(dtype)), rows.T.to(dtype))  # not contiguous
            assert torch.equal(ranks.collect_rows(rows.to(dtype)).cuda(), rows.to(dtype))
        assert ranks.from_main({"a": [1, "b"]}) == {"a": [1, "b"]}
        assert ranks.collect("a") == ["a"]
        assert ranks.any(rows > 4.0).tolist() == (rows > 4.0).tolist()
