"""LARS and the schedule against values of the published code (tests/golden/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config import OptimizerConfig
from pretrain.optimizers import LARS, learning_rate, make_optimizer, set_learning_rate
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "optimizers.json").read_text())


def as_parameters(values) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in values]


def test_lars_takes_the_published_steps():
    golden = GOLDEN["lars"]
    parameters = as_parameters(golden["start"])
    optimizer = LARS(parameters, 0.0, golden["weight_decay"], golden["momentum"], golden["eta"])
    for step in golden["steps"]:
        for parameter, grad in zip(parameters, step["grads"], strict=True):
            parameter.grad = torch.tensor(grad, dtype=torch.float64)
        set_learning_rate(optimizer, step["lr"])
        optimizer.step()
        for parameter, expected in zip(parameters, as_parameters(step["params"]), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=0)


def test_lars_resumes_from_its_state(tmp_path):
    torch.manual_seed(0)
    grads = [torch.randn(4, 3) for _ in range(4)]
    whole, halves = (torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2))

    def steps(parameter, optimizer, some):
        for grad in some:
            parameter.grad = grad.clone()
            optimizer.step()

    steps(whole, LARS([whole], 0.1), grads)
    first = LARS([halves], 0.1)
    steps(halves, first, grads[:2])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = LARS([halves], 0.1)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(halves, second, grads[2:])
    assert torch.equal(whole, halves)


def test_lars_survives_zero_weights_and_zero_gradients():
    weight, other = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    weight.grad, other.grad = torch.ones(2, 2), torch.zeros(2, 2)
    LARS([weight, other], 0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.1))
    torch.testing.assert_close(other.detach(), torch.ones(2, 2))


def one_by_one(parameters, momenta, lr, weight_decay=1e-3, momentum=0.9, trust=0.001) -> None:
    """LARS's step written plainly, a tensor at a time."""
    for parameter, running in zip(parameters, momenta, strict=True):
        update = parameter.grad
        if parameter.ndim > 1:
            update = update + weight_decay * parameter
            if parameter.norm() > 0 and update.norm() > 0:
                update = update * (trust * parameter.norm() / update.norm())
        running.mul_(momentum).add_(update)
        parameter.sub_(lr * running)


class Calls(TorchDispatchMode):
    """Counts the operations that torch is asked for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_lars_of_all_tensors_together_is_that_of_each(dtype, tolerance, device):
    """And it asks for no more operations for more tensors: on CUDA each would be a kernel."""
    torch.manual_seed(0)
    counts = []
    for repeats in (1, 9):
        shapes = [(6, 3, 3, 3), (6,), (12, 6), (12,), (1, 5), ()] * repeats
        parameters = [torch.nn.Parameter(torch.randn(shape, dtype=dtype, device=device)) for shape in shapes]
        parameters[4].data.zero_()
        plain = [parameter.detach().clone() for parameter in parameters]
        momenta = [torch.zeros_like(parameter) for parameter in plain]
        without_gradient = torch.nn.Parameter(torch.ones(2, 2, device=device))
        optimizer = LARS([*parameters, without_gradient], 0.1, 1e-3)
        for _ in range(5):
            for one, same in zip(parameters, plain, strict=True):
                one.grad = same.grad = torch.randn_like(same)
            with Calls() as calls:
                optimizer.step()
            one_by_one(plain, momenta, 0.1)
        counts.append(calls.count)
        for one, same in zip(parameters, plain, strict=True):
            torch.testing.assert_close(one.detach(), same, rtol=tolerance, atol=tolerance)
    assert counts[0] == counts[1] < 30


@pytest.mark.parametrize("step", [int(step) for step in GOLDEN["schedule"]["lr"]])
def test_schedule_is_the_published_one(step):
    arguments = GOLDEN["schedule"]["args"]
    config = OptimizerConfig(base_lr=arguments["base_lr"], end_lr_ratio=arguments["end_lr_ratio"])
    value = learning_rate(step, config, arguments["batch_size"], arguments["total_steps"], arguments["warmup_steps"])
    assert value == pytest.approx(GOLDEN["schedule"]["lr"][str(step)], rel=1e-12)


def test_adamw_decays_matrices_only():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = make_optimizer(model, OptimizerConfig(name="adamw", weight_decay=0.05))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[id(p)] for p in model.parameters()] == [0.05, 0.0, 0.0, 0.0]


def test_adamw_keeps_its_device_s_kernels_when_it_resumes_another_s():
    """A run may go on on a GPU that began on a CPU, and the other way; torch would take the checkpoint's kernels."""
    models = [torch.nn.Linear(3, 4) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    unfused, fused = (make_optimizer(model, OptimizerConfig(name="adamw")) for model in models)
    for group in fused.param_groups:
        group["fused"] = True  # as on CUDA; the CPU has such kernels too
    for model, optimizer in zip(models, (unfused, fused), strict=True):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        set_learning_rate(optimizer, 0.1)
        optimizer.step()
    assert [group["fused"] for group in unfused.param_groups] == [None, None]
    states = [optimizer.state_dict() for optimizer in (unfused, fused)]
    unfused.load_state_dict(states[1])
    fused.load_state_dict(states[0])
    for optimizer, kernels in ((unfused, None), (fused, True)):
        assert [group["fused"] for group in optimizer.param_groups] == [kernels, kernels]
        optimizer.step()
    for one, same in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, same)


def test_position_embeddings_and_class_tokens_have_no_decay() -> None:
    """As timm says for its transformers; they have three dimensions."""
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    backbone = create_backbone(BackboneConfig("vit_small_patch16_224", args))
    optimizer = make_optimizer(backbone, OptimizerConfig(name="adamw", weight_decay=0.1))
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert {"trunk.pos_embed", "trunk.cls_token"} <= others
    assert {"trunk.patch_embed.proj.weight", "trunk.blocks.0.attn.qkv.weight"} <= decayed
    assert decayed | others == set(names.values())
