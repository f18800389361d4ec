"""Processes that share a GPU are told what that means without MPS."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from myriad_lab.distributed.mps import tell_of_turns


@pytest.mark.parametrize(
    ("devices", "shared"),
    [
        (["cpu", "cpu", "cpu"], None),
        (["cuda:0", "cuda:1", "cuda:2"], None),
        (["cpu", "cuda:1", "cpu"], None),
        (["cuda", "cuda:0", "cuda:1"], "GPU 0 "),
        (["cpu", "cuda:1", "cuda:1"], "GPU 1 "),
    ],
)
def test_a_shared_gpu_is_told_of_where_no_daemon_runs(
    devices: list[str],
    shared: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        tell_of_turns(devices)
    assert [shared in message for message in caplog.messages] == ([] if shared is None else [True])
    caplog.clear()
    (tmp_path / "control").touch()
    tell_of_turns(devices)
    assert not caplog.messages
