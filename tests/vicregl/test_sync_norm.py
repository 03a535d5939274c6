"""BatchNorm over processes against torch's own on the whole batch, in float64; by CUDA's kernels and without them."""

import copy
from pathlib import Path

import norm_kernels  # noqa: F401  (registers them)
import pytest
import torch
import torch.distributed as dist
from torch import nn

from runtime.distributed import BACKENDS
from vicregl import sync_norm
from vicregl.sync_norm import synchronise

WORKER = Path(__file__).with_name("norm_worker.py")


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_have_the_norm_of_the_whole_batch(ranks, count) -> None:
    """Both ways; with three processes of unequal shares, and compiled."""
    for code, _, errors in ranks.ended(ranks(count, WORKER)):
        assert code == 0, errors


@pytest.fixture
def group(tmp_path):
    """A group of this process alone; where there is a GPU, with NCCL."""
    backend = BACKENDS["cuda" if torch.cuda.is_available() else "cpu"]
    dist.init_process_group(backend, f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(params=["formula", "kernels", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> str:
    """By the formula or by kernels on the CPU, or by torch's own kernels on a GPU."""
    monkeypatch.setattr(sync_norm, "has_kernels", lambda x: request.param != "formula")
    return "cuda" if request.param == "cuda" else "cpu"


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm2d(4), (6, 4, 3, 5)),
        (nn.BatchNorm1d(4, momentum=None), (6, 4)),
        (nn.BatchNorm1d(4, affine=False, eps=0.1), (6, 4, 3)),
        (nn.BatchNorm2d(4, track_running_stats=False), (6, 4, 2, 2)),
    ],
)
def test_the_norm_is_torch_s_own_formula(group, device, norm, shape) -> None:
    """Outputs, gradients and running statistics over three steps, and evaluation after them, in float64."""
    torch.manual_seed(0)
    own, plain = (copy.deepcopy(norm).double().to(device) for _ in range(2))
    synchronise(own)
    assert list(own.state_dict()) == list(plain.state_dict())
    assert type(own) is not type(plain)
    for _ in range(3):
        x = (3 * torch.randn(shape, dtype=torch.float64, device=device) + 2).requires_grad_()
        same = x.detach().clone().requires_grad_()
        weights = torch.randn(shape, dtype=torch.float64, device=device)
        (own(x) * weights).sum().backward()
        (plain(same) * weights).sum().backward()
        torch.testing.assert_close(x.grad, same.grad)
    for mine, theirs in zip(own.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(own.state_dict()[key], value)
    x = torch.randn(shape, dtype=torch.float64, device=device)
    torch.testing.assert_close(own.eval()(x), plain.eval()(x))
    copy.deepcopy(own)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_half_precision_stays_what_it_was(group, device, layout) -> None:
    torch.manual_seed(0)
    norm = synchronise(nn.BatchNorm2d(4)).to(device)
    x = torch.randn(8, 4, 5, 5, device=device).bfloat16().to(memory_format=layout).requires_grad_()
    same = x.detach().float().requires_grad_()
    expected = nn.BatchNorm2d(4).to(device)(same)
    found = norm(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16(), rtol=0.02, atol=0.02)
    weights = torch.randn_like(expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad, same.grad.bfloat16(), rtol=0.05, atol=0.05)
