from __future__ import annotations

import pytest

from myriad_lab.cli.benchmarks import ranks
from myriad_lab.functional.collective import ALONE


def test_work_is_set_against_a_fair_share_of_one_rank_and_messages_against_a_copy(monkeypatch):
    messages = {("all-gather", "8 B"): (4e-3, 5e-3), ("copy", "8 B"): (1e-3, 1e-3)}
    work = {1: {("search", "9"): (6.0, 6.0)}, 2: {("search", "9"): (4.0, 5.0)}}
    monkeypatch.setattr(ranks, "_in_processes", lambda n, device, quick: (messages if n > 1 else {}, work[n]))
    (case,) = ranks.cases("cpu", quick=True)
    message, search = case.run()
    assert (message.name, message.measured_s, message.floor_s) == ("all-gather, 2 ranks", 4e-3, 1e-3)
    assert search.floor_ratio == pytest.approx(4.0 / 3.0)
    assert search.note == "1 rank 6000 ms"


def test_a_single_gpu_still_times_what_would_be_shared(monkeypatch):
    monkeypatch.setattr(ranks, "_in_processes", lambda n, device, quick: ({}, {("search", "9"): (6.0, 6.0)}))
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: 1)
    (case,) = ranks.cases("cuda:0", quick=True)
    (search,) = case.run()
    assert (case.name, search.measured_s, search.floor_ratio) == ("1 ranks", 6.0, 1.0)


def test_every_message_has_its_copy():
    times = ranks._messages(ALONE, "cpu", quick=True)
    assert {size for what, size in times if what == "copy"} == {size for _, size in times}
    assert all(0.0 < median <= p95 for median, p95 in times.values())
