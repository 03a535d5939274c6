"""What a training step asks of a GPU, counted on a pretended one; and the counter itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]

Rows = Callable[..., list[dict[str, str]]]
CONVNEXT = [
    *("model.backbone.name=convnext_atto", "model.backbone.args={depths: [1, 1, 1, 1], dims: [8, 8, 8, 16]}"),
    *("model.expander=16-16", "model.projector=16-16", "views.large_size=64", "views.small_size=32"),
]


@pytest.fixture
def rows(command) -> Rows:
    def count(*arguments: str) -> list[dict[str, str]]:
        done = command("benchmarks.launches", *arguments)
        assert done.returncode == 0, done.stderr
        head, _, *found = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line[0] == "|"]
        return [dict(zip(head, cells, strict=True)) for cells in found]

    return count


def numbers(row: dict[str, str], *columns: str) -> list[float]:
    return [float(row[column].replace(",", "")) for column in columns]


def test_a_step_of_several_processes_waits_once_and_lars_is_a_few_kernels(rows) -> None:
    """The loss must be finite before the weights change: that is the one wait."""
    options = ["optimizer.name=lars", "optimizer.base_lr=0.3"]
    alone, several = rows("quickstart:4x1", "quickstart:4x4", *options)
    for row in (alone, several):
        assert numbers(row, "waits") == [1]
        assert numbers(row, "optimizer")[0] < 60  # 27 tensors have one for their scale; all else is together
    assert numbers(alone, "collectives", "MB sent") == [0, 0]
    # Gathered (mean, 1 / deviation, count) and the sum backward: two a norm.
    assert 50 < numbers(several, "collectives")[0] < 100


def test_views_of_one_size_are_one_call(rows) -> None:
    launches = []
    for small in (2, 6):
        (row,) = rows("convnext_small:4x1", *CONVNEXT, f"views.small_count={small}")
        launches += numbers(row, "network")
    copies = launches[1] - launches[0]  # images to bfloat16, if anything, is all that there is for each view
    assert 0 <= copies <= 8


def test_colour_never_waits_and_is_little_beside_a_step_once_compiled(rows) -> None:
    """At most 5 % of the bytes of a step of ResNet-50 with as many images: 203.9 GB of 256."""
    plain, compiled = rows("colour:64", "colour-compiled:64")
    assert numbers(plain, "waits") == numbers(compiled, "waits") == [0]
    launches, gigabytes = numbers(compiled, "launches", "GB read and written")
    assert launches < 160
    assert gigabytes <= 0.05 * 203.9 * 64 / 256
    assert numbers(plain, "launches")[0] < 760


def test_the_criterion_takes_the_pairs_of_views_together(rows) -> None:
    """13 pairs at two large and six small views, in both directions: a few kernels a pair, and the rest once."""
    two, multi_crop = (rows("convnext_small:4x1", *CONVNEXT, f"views.small_count={n}")[0] for n in (0, 6))
    assert numbers(two, "criterion")[0] < 300
    assert numbers(multi_crop, "criterion")[0] < 500


def test_precision_auto_is_bfloat16_on_a_gpu(rows) -> None:
    assert rows("quickstart:4x1", "train.precision=auto") == rows("quickstart:4x1", "train.precision=bfloat16")


def test_the_graphs_of_a_compiled_network(command) -> None:
    """Backbone, expander and a projector for each stage, with BatchNorm over processes."""
    done = command("benchmarks.launches", "--graphs", "quickstart:4x4", "model.local_stages=[-2,-1]")
    assert done.stdout.startswith("quickstart:4x4: 4 graphs with "), done.stdout + done.stderr


COUNTER = """
from benchmarks.pretend_cuda import BYTES, FLOPS, SECONDS, pretend
import torch
with pretend() as asked:
    x, y = torch.empty(4, 3, device="cuda"), torch.empty(4, 3, device="cuda")
    with asked.during("sum"):
        z = x + y
    assert asked.launches["sum"] == 1 and asked.memory["sum"] == 3 * 4 * 3 * 4
    with asked.during("views"):
        x.t().reshape(3, 4).detach(); torch.empty_like(x)
    assert asked.launches["views"] <= 1  # the copy of reshape
    for name, work, waits in (
        ("item", lambda: x.sum().item(), 1),
        ("mask", lambda: x[x[:, 0] > 0], 1),
        ("to the host", lambda: x.cpu(), 1),
        ("nonzero", lambda: x.nonzero(), 1),
        ("sum", lambda: x.sum(), 0),
        ("from the host", lambda: torch.empty(3).to("cuda", non_blocking=True), 0),
    ):
        asked.clear()
        work()
        assert asked.waits.total() == waits, (name, asked.waits)
    asked.clear()
    wide, large = (torch.empty(n, n, device="cuda", dtype=torch.bfloat16) for n in (64, 8192))
    wide @ wide, large @ large
    products, moved = 2 * 8192**3 / FLOPS[torch.bfloat16], 3 * 2 * 8192**2 / BYTES
    assert moved < products and abs(asked.seconds[""] - SECONDS - products) < 1e-9
    asked.clear()
    torch._foreach_add_([x] * 100, [y] * 100)
    assert asked.launches.total() == 2  # 64 tensors a kernel
    asked.clear()
    torch._foreach_mul_([x] * 10, [torch.empty((), device="cuda")] * 10)
    assert asked.launches.total() == 10  # sizes differ: a kernel each
    try:
        x + torch.empty(4, 3)
    except RuntimeError as error:
        assert "device" in str(error)
    else:
        raise AssertionError("two devices were mixed")
print("counted")
"""


PARTS = """
from benchmarks.pretend_cuda import pretend, put_on_cuda
import torch
from unittest import mock
from eval import dense_knn, knn
from eval.features import PooledFeatures
from eval.linear_heads import LinearHeads
from pretrain.checkpoint import random_state, set_random_state
from pretrain.config import ProbeConfig
from pretrain.diagnostics import OnlineProbe, feature_diagnostics
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
backbone = create_backbone(BackboneConfig("resnet18"))
backbone.grid_size(32)

def on(device, *shape):
    return torch.zeros(shape, device=device)

def labels(count, device=GPU):
    return torch.zeros(count, dtype=torch.long, device=device)

def learn(module, loss, parameters):
    optimizer = torch.optim.SGD(parameters, momentum=0.9, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

with pretend() as asked, mock.patch.object(knn, "_largest", lambda product, k: product.topk(k).indices):
    put_on_cuda(backbone, channels_last=True)
    features = PooledFeatures(backbone, GPU)
    assert features(on(CPU, 4, 3, 32, 32)).device == features.maps(on(GPU, 4, 3, 32, 32)).device == GPU
    heads = LinearHeads(512, 10, 3, 0)
    put_on_cuda(heads, channels_last=False)
    heads.weights = torch.nn.ParameterList([torch.nn.Parameter(on(GPU, 10, 512)) for _ in range(3)])
    heads.biases = torch.nn.ParameterList([torch.nn.Parameter(on(GPU, 10)) for _ in range(3)])
    learn(heads, lambda: heads.losses(on(GPU, 8, 512), labels(8)).sum(), heads.parameter_groups([0.1, 0.2, 0.3]))
    heads.accuracy(on(GPU, 8, 512), labels(8))
    bank, queries = (on(GPU, 90, 16), labels(90)), (on(GPU, 20, 16), labels(20))
    knn.accuracies(bank, queries, [1, 5], 0.07, 10, 1 << 14)
    dense_knn.vote((on(GPU, 90, 16), on(GPU, 90, 11)), on(GPU, 20, 16), [3], 0.02, 1 << 14)
    dense_knn.predict(on(GPU, 11, 4, 4), (32, 32))
    with torch.device("cuda"):
        probe = OnlineProbe(512, 10, ProbeConfig())
    probe.update(on(GPU, 8, 512), labels(8))
    probe.accuracy()
    feature_diagnostics(on(GPU, 8, 16), "x")
    set_random_state(random_state(GPU), GPU)
print("no devices mixed")
"""


@pytest.mark.parametrize(
    ("program", "says"), [(COUNTER, "counted"), (PARTS, "no devices mixed")], ids=["counter", "parts"]
)
def test_on_the_pretended_device(program, says) -> None:
    """The counter counts; and evaluations, probe and diagnostics leave what they compute on the GPU."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == f"{says}\n", done.stderr
