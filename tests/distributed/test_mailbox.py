from __future__ import annotations

import threading

import torch
import torch.multiprocessing

from myriad_lab.distributed.mailbox import WeightMailbox


def tensors(value: float) -> list[torch.Tensor]:
    return [torch.full((300, 40), value), torch.full((7,), value)]


def test_only_news_are_fetched_with_their_tags() -> None:
    box = WeightMailbox(tensors(0.0), tags=2)
    into = tensors(-1.0)
    assert box.fetch(into) is None
    assert into[0][0, 0] == -1.0
    for value in (1.0, 2.0):
        box.publish(tensors(value), (int(value), 7))
    assert box.version == 2
    assert box.fetch(into) == [2, 7]
    assert all(bool((tensor == 2.0).all()) for tensor in into)
    assert box.fetch(into) is None


def test_a_message_is_never_torn() -> None:
    box = WeightMailbox(tensors(0.0))
    stop = threading.Event()

    def write() -> None:
        value = 0
        while not stop.is_set():
            value += 1
            box.publish(tensors(float(value)), (value,))

    writer = threading.Thread(target=write)
    writer.start()
    into, last, seen = tensors(0.0), 0, 0
    try:
        while seen < 200:
            if (tags := box.fetch(into)) is not None:
                assert tags[0] > last
                assert all(bool((tensor == float(tags[0])).all()) for tensor in into)
                last, seen = tags[0], seen + 1
    finally:
        stop.set()
        writer.join()


def _echo(inbox: WeightMailbox, outbox: WeightMailbox) -> None:
    into = tensors(0.0)
    while inbox.fetch(into) is None:
        pass
    outbox.publish([tensor * 2 for tensor in into], (5,))


def test_weights_cross_processes() -> None:
    to_child, from_child = WeightMailbox(tensors(0.0)), WeightMailbox(tensors(0.0))
    process = torch.multiprocessing.get_context("spawn").Process(target=_echo, args=(to_child, from_child))
    process.start()
    to_child.publish(tensors(3.0))
    process.join(60)
    into = tensors(0.0)
    assert process.exitcode == 0
    assert from_child.fetch(into) == [5]
    assert bool((into[0] == 6.0).all())
