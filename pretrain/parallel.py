"""The model as one of several processes calls it, and what differs between the processes: their random numbers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.config import PretrainConfig
from runtime.distributed import World
from vicregl.model import ModelOutput, VICRegLModel
from vicregl.sync_norm import synchronise

RandomState = dict[str, Tensor | None]


def prepare_model(model: VICRegLModel, config: PretrainConfig, device: torch.device, world: World) -> VICRegLModel:
    """The model on its device, in the memory layout and with the norms and the compilation of the config."""
    if world.size > 1 and config.train.sync_batch_norm:
        model = synchronise(model, device)
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it
    if config.machine.compile:
        for part in (model.backbone, model.expander, model.projector):
            if part is not None:
                part.compile()  # in place, so that tensors keep their names
    return model


def wrapped(model: VICRegLModel, config: PretrainConfig, device: torch.device, world: World) -> nn.Module:
    """What the loop calls: the model, or DDP, which averages the gradients of the processes.

    The average is right: the criterion's gradients are times the number of processes (vicregl/batch.py).
    """
    if world.size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=bool(unused_parameters(model, config.views.large_size)),
        gradient_as_bucket_view=True,
    )


def unused_parameters(model: VICRegLModel, side: int) -> list[str]:
    """Parameters that no output depends on, as layers of timm networks behind the map: DDP would wait for them."""
    shapes = copy.deepcopy(model).to("meta").eval()
    output: ModelOutput = shapes.forward([torch.empty(2, 3, side, side, device="meta")])
    sum(tensor.sum() for tensor in outputs(output)).backward()  # type: ignore[union-attr]  # there is one at least
    return [name for name, p in shapes.named_parameters() if p.requires_grad and p.grad is None]


def outputs(output: ModelOutput) -> list[Tensor]:
    """The tensors of a model's output that the criterion takes: embeddings, then maps."""
    maps = [m for stage in output.maps for m in (stage if isinstance(stage, list) else [stage])]
    return [*output.embeddings, *maps]


def random_state(device: torch.device) -> RandomState:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def set_random_state(state: RandomState, device: torch.device) -> None:
    if (cpu := state["cpu"]) is not None:
        torch.set_rng_state(cpu)
    if device.type == "cuda" and (cuda := state["cuda"]) is not None:
        torch.cuda.set_rng_state(cuda, device)


def seed_apart(seed: int, step: int, world: World) -> None:
    """Seed each process on its own, so that drop path, say, does not leave out the same samples everywhere."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, world.rank)).generate_state(1, np.uint64)[0] >> 1))


def gather_random_states(device: torch.device, world: World) -> list[RandomState]:
    """Of every process, at process 0; an empty list elsewhere."""
    own = random_state(device)
    if world.size == 1:
        return [own]
    states: list[Any] | None = [None] * world.size if world.is_main else None
    dist.gather_object(own, states, dst=0)
    return states or []


def gather_rows(rows: Tensor, world: World) -> Tensor:
    """(n, ...) of every process -> (all, ...), in order of the processes; no gradient."""
    if world.size == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world.size)]
    dist.all_gather(gathered, rows.detach().contiguous())
    return torch.cat(gathered)
