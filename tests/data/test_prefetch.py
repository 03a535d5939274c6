"""Prefetching to a device: in order, with errors passed on and no thread left; with a GPU and with a fake one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from data import loader as module
from data.catalog import open_dataset
from data.config import DataConfig, ViewsConfig
from data.loader import PretrainLoader, prefetched
from runtime.errors import UserError


@dataclass
class Item:
    number: int

    def tensors(self) -> list:
        return []


class FakeStream:
    """Remembers the events that it waited for."""

    def __init__(self, device: object = None) -> None:
        self.waited: list[object] = []

    def wait_event(self, event: FakeEvent) -> None:
        assert event.recorded
        self.waited.append(event)


class FakeEvent:
    recorded = False

    def record(self, stream: FakeStream) -> None:
        self.recorded = True


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> FakeStream:
    """Replace torch.cuda; return the caller's stream."""

    @contextmanager
    def entered(_: object) -> Iterator[None]:
        yield

    stream = FakeStream()
    cuda = SimpleNamespace(
        Stream=FakeStream, Event=FakeEvent, stream=entered, device=entered, current_stream=lambda device: stream
    )
    monkeypatch.setattr(module, "torch", SimpleNamespace(cuda=cuda))
    return stream


def threads_left() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_come_in_order_after_their_event(current: FakeStream) -> None:
    items = prefetched(iter(range(20)), Item, torch.device("cpu"))
    assert [item.number for item in items] == list(range(20))
    assert len(current.waited) == 20
    assert not threads_left()


def test_it_works_one_batch_ahead(current: FakeStream) -> None:
    made: list[int] = []
    items = prefetched(iter(range(20)), lambda n: (made.append(n), Item(n))[1], torch.device("cpu"))
    assert next(items).number == 0
    deadline = time.monotonic() + 600
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(made) == 3  # in use, waiting, made and waiting for room
    items.close()
    assert not threads_left()


@pytest.mark.parametrize("where", ["worker", "finish"])
def test_errors_reach_the_caller(current: FakeStream, where: str) -> None:
    def raws() -> Iterator[int]:
        yield from range(3)
        if where == "worker":
            raise UserError("the fourth is bad")
        yield 3

    def finish(number: int) -> Item:
        if number == 3:
            raise UserError("the fourth is bad")
        return Item(number)

    items = prefetched(raws(), finish, torch.device("cpu"))
    assert [next(items).number for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="the fourth is bad"):
        next(items)
    assert not threads_left()


@pytest.mark.gpu
@pytest.mark.parametrize("execution", ["cpu", "device"])
@pytest.mark.parametrize(("workers", "kind"), [(0, "processes"), (2, "processes"), (2, "threads")])
def test_a_gpu_gets_the_same_batches(small_scenes: DataConfig, execution: str, workers: int, kind: str) -> None:
    views = ViewsConfig(large_size=32, small_count=1, small_size=16, execution=execution)
    dataset = open_dataset(small_scenes)

    def loader(device: str) -> PretrainLoader:
        return PretrainLoader(dataset, views, lambda side: (side // 4,) * 2, 10, 0, workers, kind, device)

    on_gpu = loader("cuda")
    for one, other in zip(loader("cpu").batches(3, 15), on_gpu.batches(3, 15), strict=True):
        assert (one.step, one.epoch) == (other.step, other.epoch)
        for x, y in zip(one.tensors(), other.tensors(), strict=True):
            assert y.device.type == "cuda"
            # a level where the order of a sum decides a rounding: 1 / 58 of a deviation
            assert (x - y.cpu()).abs().float().mean() < 1e-3
    assert on_gpu.wait_seconds > 0
    assert not threads_left()


@pytest.mark.gpu
def test_a_gpu_that_computes_while_batches_come_sees_them_whole(small_scenes: DataConfig) -> None:
    """The memory of a batch in use is not taken for the next one."""
    views = ViewsConfig(large_size=32).replace(execution="device")
    dataset = open_dataset(small_scenes)
    expected = [b.images[0] for b in PretrainLoader(dataset, views, lambda side: (8, 8), 20, 0).batches(0, 30)]
    loader = PretrainLoader(dataset, views, lambda side: (8, 8), 20, 0, device="cuda")
    busy = torch.randn(2000, 2000, device="cuda")
    sums = []
    for batch in loader.batches(0, 30):
        for _ in range(20):
            busy = busy @ busy / busy.norm()
        sums.append(batch.images[0].double().sum())
        del batch
    for total, images in zip(sums, expected, strict=True):
        assert abs(float(total) - float(images.double().sum())) < 1e-3 * images.numel()
