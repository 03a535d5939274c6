"""LARS and the schedule against values of the published code (tests/golden/README.md)."""

import json
from pathlib import Path

import pytest
import torch

from pretrain.config import OptimizerConfig
from pretrain.optimizers import LARS, learning_rate, make_optimizer, set_learning_rate

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
