"""Memory is reused only when nothing refers to it any more."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import torch

from data.catalog import open_dataset
from data.config import DataConfig, ViewsConfig
from data.images import normalise
from data.loader import BufferPool, PretrainLoader


def test_an_array_in_use_is_not_reused() -> None:
    """Held as an array, as a view of it, as a tensor, as a part of a tensor, or by what autograd saved."""
    pool = BufferPool()
    array = pool.take((4, 3), np.float32)
    first = array.ctypes.data
    for hold in (
        lambda a: a,
        lambda a: a[1:, ::2],
        torch.from_numpy,
        lambda a: torch.from_numpy(a).movedim(-1, 0)[1],
        lambda a: (torch.from_numpy(a) * torch.ones(3, requires_grad=True)).grad_fn,
        lambda a: torch.from_numpy(a).numpy(),
    ):
        held = hold(array)
        del array
        other = pool.take((4, 3), np.float32)
        assert other.ctypes.data != first
        del held, other
        array = pool.take((4, 3), np.float32)
        assert array.ctypes.data == first


def test_other_shapes_and_types_are_other_arrays() -> None:
    pool = BufferPool()
    pool.take((4, 3), np.float32)
    assert pool.take((4, 3), np.uint8).dtype == np.uint8
    assert pool.take((3, 4), np.float32).shape == (3, 4)
    assert pickle.loads(pickle.dumps(pool)).take((2,), np.uint8).shape == (2,)


def test_threads_never_share_an_array() -> None:
    pool, clashes = BufferPool(), []

    def work(mark: int) -> None:
        for _ in range(2000):
            array = pool.take((8,), np.int64)
            array[:] = mark
            clashes.extend(array[array != mark])

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []


def test_batches_that_are_kept_keep_their_values(small_scenes: DataConfig) -> None:
    loader = PretrainLoader(open_dataset(small_scenes), ViewsConfig(large_size=32), lambda side: (1, 1), 10, 0)
    kept = [(batch.images[0], batch.images[0].clone()) for batch in loader.batches(0, 12)]
    assert all(torch.equal(now, then) for now, then in kept)
    assert len({now.data_ptr() for now, _ in kept}) == 12
    places = set()
    for batch in loader.batches(0, 12):
        places.add(batch.images[0].data_ptr())
        del batch
    assert len(places) < 4


def test_normalise_fills_it() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    pool = BufferPool()
    assert torch.equal(normalise(pixels, allocate=pool.take), normalise(pixels))
