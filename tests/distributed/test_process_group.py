from __future__ import annotations

import pytest
import torch
from rank_jobs import outlive, tell_each_other
from ranks import run_ranks

from myriad_lab.distributed.process_group import Place, check_shards, find_place, refuse_lone_ranks, settle_device
from myriad_lab.errors import ConfigurationError
from myriad_lab.functional.collective import ALONE

SET = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SET |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_two_ranks_tell_each_other_what_they_have():
    first, second = run_ranks(2, tell_each_other)
    rows = torch.arange(6).view(3, 2)
    both = torch.cat((rows, rows + 10))
    for found in (first, second):
        assert torch.equal(found["sum"], 2 * rows + 10)
        assert found["any"].tolist() == [True, False, True]
        assert torch.equal(found["gathered"], both)
        assert found["flags"].tolist() == [True, False, False, False, False, True]
        assert found["told"] == "rank 0"
    assert torch.equal(first["left"], rows)  # a sum writes into nobody's tensor
    assert torch.equal(first["collected"], both)
    assert torch.equal(second["collected"], rows + 10)
    assert [value["rank"] for value in first["values"]] == [0, 1]
    assert torch.equal(first["values"][1]["rows"], rows + 10)
    drawn = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat((first["drawn"], second["drawn"])), drawn)


def test_a_rank_that_dies_is_noticed_by_the_others():
    (found,) = run_ranks(2, outlive, answers=1)
    assert "closed" in found.lower() or "reset" in found.lower()


def test_alone_nothing_is_changed_and_nothing_is_copied():
    rows = torch.rand(3, 2)
    assert ALONE.sum(rows) is ALONE.gather_rows(rows) is ALONE.collect_rows(rows) is rows
    assert ALONE.own_rows(rows).data_ptr() == rows.data_ptr()
    assert ALONE.own_rows(rows).shape == rows.shape
    assert ALONE.collect({"a": 1}) == [{"a": 1}]


def test_the_place_is_read_from_what_torchrun_sets():
    assert find_place(SET) == Place(rank=1, world_size=4, local_rank=1, local_world_size=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict.fromkeys(SET, ""), ["RANK, WORLD_SIZE", "MASTER_PORT not set", "torchrun --nproc_per_node"]),
        ({"LOCAL_RANK": ""}, ["LOCAL_RANK not set"]),
        ({"WORLD_SIZE": "two"}, ["WORLD_SIZE='two'", "whole number"]),
        ({"RANK": "4"}, ["RANK=4 of WORLD_SIZE=4", "below its size"]),
    ],
)
def test_a_place_that_is_none_is_refused(changes, words):
    with pytest.raises(ConfigurationError) as caught:
        find_place(SET | changes)
    assert all(word in str(caught.value) for word in words)


def test_what_cannot_be_dealt_out_is_refused():
    check_shards(64, 8, 4)
    with pytest.raises(ConfigurationError, match=r"num_policies=6 .*4 ranks.*num_policies=8 with num_envs=32"):
        check_shards(24, 6, 4)
    with pytest.raises(ConfigurationError, match=r"num_policies=1 .*num_policies=2 with num_envs=48"):
        check_shards(24, 1, 2)


def test_processes_that_do_not_know_of_each_other_are_refused():
    refuse_lone_ranks({"WORLD_SIZE": "4"})  # set by something else
    refuse_lone_ranks(SET | {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"})
    with pytest.raises(ConfigurationError, match=r"4 processes.*add --distributed"):
        refuse_lone_ranks(SET | {"TORCHELASTIC_RUN_ID": "none"})


def test_devices_that_are_not_the_ranks_own_are_refused(monkeypatch):
    settle_device("cpu", Place(3, 4, 3, 4))
    with pytest.raises(ConfigurationError, match=r"--device cuda:1: .*give --device cuda"):
        settle_device("cuda:1", Place())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigurationError, match=r"process 3 of this machine.* has 2 GPUs"):
        settle_device("cuda", Place(3, 4, 3, 4))
