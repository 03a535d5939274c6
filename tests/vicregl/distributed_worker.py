"""python distributed_worker.py RANK PROCESSES FOLDER: one of the processes of test_criterion_distributed.py."""

import functools
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from products import multiply_adds
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import UserError
from vicregl.criterion import VICRegLCriterion

SAMPLES = 12  # of all processes
POSITIONS = [9, 9, 4]
FEATURES, EMBEDDING = 7, 20
MATCHES = {"num_matches": (4, 2)}
# 16 channels: more than samples, so Gram matrices; 5: fewer, so moments.
CASES = {
    f"{name}-{channels}": (channels, MATCHES | options)
    for channels in (16, 5)
    for name, options in {
        "reference": {"profile": "reference"},
        "paper": {},
        "threshold": {"select": "threshold", "feature_threshold": 0.9, "location_threshold": 20.0},
        "maps": {"statistics": "maps"},
        "global": {"alpha": 1.0},
        "local": {"alpha": 0.0},
    }.items()
}
# Slightly fewer channels than samples: one process makes covariances, and several gather the maps, as the sums of the
# covariances would be larger.
GATHERED = {"gathered": (10, MATCHES)}


class Heads(nn.Module):
    """Shared parameters on both sides of the criterion's inputs, without a BatchNorm, whose statistics are its own."""

    def __init__(self, channels: int, alpha: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.expander = nn.Linear(FEATURES, EMBEDDING) if alpha > 0 else None
        self.projector = nn.Linear(FEATURES, channels) if alpha < 1 else None

    def forward(self, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        embeddings = [] if self.expander is None else [self.expander(x.mean(1)) for x in views]
        return embeddings, [] if self.projector is None else [self.projector(x) for x in views]


def data(rank: int, processes: int) -> tuple[list[Tensor], list[Tensor]]:
    """This process's share of the samples: features (n, P, F) and locations (n, P, 2) of every view."""
    random = torch.Generator().manual_seed(0)
    share = slice(rank * SAMPLES // processes, (rank + 1) * SAMPLES // processes)
    features = [torch.randn(SAMPLES, p, FEATURES, generator=random, dtype=torch.float64) for p in POSITIONS]
    locations = [100 * torch.rand(SAMPLES, p, 2, generator=random, dtype=torch.float64) for p in POSITIONS]
    return [x[share] for x in features], [x[share] for x in locations]


def step(channels: int, options: dict, rank: int = 0, processes: int = 1) -> dict:
    """Losses, parameter gradients, multiply-adds and bytes received of one training step."""
    criterion = VICRegLCriterion(**options)
    heads: nn.Module = Heads(channels, criterion.options.alpha).double()
    model = DistributedDataParallel(heads) if processes > 1 else heads
    features, locations = data(rank, processes)
    received.clear()
    outputs = model(features)
    losses: dict[str, Tensor] = {}
    work = multiply_adds(lambda: losses.update(criterion(*outputs, locations)))
    traffic = sum(received)
    losses["loss"].backward()
    gradients = {name: p.grad.clone() for name, p in heads.named_parameters()}
    values = {name: value.detach() for name, value in losses.items()}
    return {"losses": values, "gradients": gradients, "multiply_adds": work, "bytes": traffic}


received: list[int] = []


def count_traffic() -> None:
    """Note the bytes that every collective hands back."""
    for name, argument in (("all_reduce", 0), ("all_gather_into_tensor", 0)):
        collective = getattr(dist, name)

        @functools.wraps(collective)
        def counted(*args, _collective=collective, _argument=argument, **kwargs):
            received.append(args[_argument].numel() * args[_argument].element_size())
            return _collective(*args, **kwargs)

        setattr(dist, name, counted)


def uneven(rank: int) -> str:
    """What the criterion says when process 0 has a sample fewer."""
    embeddings = [torch.randn(4 - (rank == 0), 5) for _ in range(2)]
    try:
        VICRegLCriterion(alpha=1)(embeddings, [], [])
    except UserError as error:
        return str(error)
    return "nothing"


def main(rank: int, processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=processes)
    count_traffic()
    results = {
        name: step(channels, options, rank, processes) for name, (channels, options) in (CASES | GATHERED).items()
    }
    torch.save({"steps": results, "uneven": uneven(rank)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
