"""python norm_worker.py: one of the processes of test_sync_norm.py, with its share of the samples."""

from __future__ import annotations

import copy
from datetime import timedelta

import norm_kernels  # noqa: F401  (registers them)
import torch
import torch.distributed as dist
from torch import Tensor, nn

import runtime  # noqa: F401  (prepares torchvision beside a CPU-only torch)
from vicregl import sync_norm

SHARES = {2: [6, 6], 3: [3, 5, 4]}  # samples of each process; one may have fewer
NORMS = {
    "4 dimensions": (nn.BatchNorm2d(4), (4, 3, 5)),
    "2 dimensions": (nn.BatchNorm1d(4, eps=0.1), (4,)),
    "not affine": (nn.BatchNorm2d(4, affine=False), (4, 2, 2)),
}


def run(norm: nn.Module, x: Tensor, outer: Tensor) -> dict[str, Tensor]:
    """Output, gradients and running statistics of two steps."""
    for _ in range(2):
        norm.zero_grad()
        x = x.detach().requires_grad_()
        y = norm(x)
        (y * outer).sum().backward()
    parameters = {f"grad of {name}": p.grad for name, p in norm.named_parameters()}
    running = {name: buffer.double() for name, buffer in norm.named_buffers()}
    return {"y": y.detach(), "grad of x": x.grad, **parameters, **running}


def compare(norm: nn.Module, shape: tuple[int, ...], share: slice, compiled: bool = False) -> None:
    random = torch.Generator().manual_seed(0)
    x, outer = (torch.randn(12, *shape, generator=random, dtype=torch.float64) for _ in range(2))
    x = 3 * x + torch.arange(12, dtype=torch.float64).reshape(-1, *[1] * len(shape))  # shares differ in their means
    norm = norm.double()
    for weights in norm.parameters():
        nn.init.uniform_(weights)
        dist.broadcast(weights.data, 0)
    whole = run(copy.deepcopy(norm), x, outer)
    shared = sync_norm.synchronise(copy.deepcopy(norm))
    if compiled:  # as one graph: an error where it breaks
        shared.compile(backend="aot_eager", fullgraph=True)
    own = run(shared, x[share], outer[share])
    for name, expected in whole.items():
        if name in ("y", "grad of x"):
            expected = expected[share]
        elif name.startswith("grad"):
            dist.all_reduce(own[name])
        torch.testing.assert_close(own[name], expected, rtol=1e-10, atol=1e-12, msg=name)


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(minutes=20))
    shares = SHARES[dist.get_world_size()]
    start = sum(shares[: dist.get_rank()])
    for kernels in (False, True):
        sync_norm.has_kernels = lambda x, answer=kernels: answer
        share = slice(start, start + shares[dist.get_rank()])
        for norm, shape in NORMS.values():
            compare(norm, shape, share)
        if dist.get_world_size() == 3:  # it takes long, and that test is a slow one
            compare(*NORMS["4 dimensions"], share, compiled=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
