"""One step in parts, in half precision, compiled: against the plain step on the same batch."""

import copy

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

import pretrain.training
from data import batch_colour
from data.loader import ViewBatch
from pretrain.config import PretrainConfig
from pretrain.step import training_step
from pretrain.training import Training
from runtime import config as configs
from runtime.rundir import Run
from runtime.world import World

IMAGES, PARTS = 8, 4
# A ConvNeXt of timm's with all its ways: LayerNorm everywhere, layer scale, and drop path where a test asks.
CONVNEXT = [
    "model.backbone.name=convnext_atto",
    "model.backbone.args={depths: [1, 1, 2, 1], dims: [8, 16, 24, 32], ls_init_value: 0.5}",
    "model.projector_norm=layer",
    "views.large_size=64",
]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def make(image_folder, tmp_path):
    """A Training of a small network, whose weights depend on the seed alone."""

    def training(*overrides: str, device: str = "cpu") -> Training:
        fixed = [
            "data.name=imagefolder",
            f"data.root={image_folder}",
            "model.expander=32-24",
            "model.projector=16-12",
            f"train.batch_size={IMAGES}",
            "train.duration=100 steps",
            "train.precision=float32",
            "probe.enabled=false",
            "loss.num_matches=[3,3]",
        ]
        config = configs.load(PretrainConfig, "pretrain/configs/quickstart.yaml", [*fixed, *overrides])
        return Training.build(config, Run(tmp_path), torch.device(device), World())

    return training


def batch(side: int, grid: int, step: int = 0) -> ViewBatch:
    """Two views of random images, at random places."""
    generator = torch.Generator().manual_seed(step)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.get_default_dtype())

    views = [random(IMAGES, 3, side, side) for _ in range(2)]
    return ViewBatch(views, [100 * random(IMAGES, grid, grid, 2) for _ in range(2)], None, step, 0)


def weights_after(training: Training, steps: int, grid: int = 2) -> tuple[dict[str, torch.Tensor], list[float]]:
    losses = [training_step(training, batch(64, grid, step), 1e-2)[0]["loss"].item() for step in range(steps)]
    return {key: value.cpu() for key, value in training.state.model.state_dict().items()}, losses


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("options", "grid"),
    [
        (CONVNEXT, 2),
        ([*CONVNEXT, f"train.accumulate={PARTS}", "model.local_stages=[-2,-1]"], 2),
        (["optimizer.name=lars", "optimizer.base_lr=0.3", "views.large_size=64"], 16),  # with BatchNorm
    ],
)
def test_a_gpu_takes_the_cpu_s_steps(make, double, options, grid) -> None:
    """In float64; AdamW's by its fused kernels, LARS's by foreach operations, both with a network's own layout."""
    expected, losses = weights_after(make(*options), 3, grid)
    found, found_losses = weights_after(make(*options, device="cuda"), 3, grid)
    assert found_losses == pytest.approx(losses, rel=1e-9)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-8, msg=key)


@pytest.mark.parametrize("options", [[], ["model.local_stages=[-2,-1]"], ["loss.alpha=1"], ["train.clip_norm=0.1"]])
def test_in_parts_is_the_step_of_the_whole_batch(make, double, options) -> None:
    whole, losses = weights_after(make(*CONVNEXT, *options), 3)
    parts, losses_of_parts = weights_after(make(*CONVNEXT, *options, f"train.accumulate={PARTS}"), 3)
    assert losses_of_parts == pytest.approx(losses, rel=1e-12)
    before = make(*CONVNEXT, *options).state.model.state_dict()
    assert all(not torch.equal(before[key], whole[key]) for key in before)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-9, atol=1e-11, msg=key)


def test_in_parts_with_drop_path_has_the_gradient_of_the_loss_that_it_returns(make, double) -> None:
    """Against one graph of all the parts, for the same random numbers: the second pass drops what the first did."""
    dropping = [CONVNEXT[0], CONVNEXT[1].replace("{", "{drop_path_rate: 0.5, "), *CONVNEXT[2:]]
    training = make(*dropping, f"train.accumulate={PARTS}")
    model = copy.deepcopy(training.state.model)
    views = batch(64, 2)
    torch.manual_seed(5)
    outputs_of_parts = [model(part) for part in zip(*(view.chunk(PARTS) for view in views.images), strict=True)]
    after = torch.get_rng_state()
    embeddings, maps = ([torch.cat(list(same)) for same in zip(*x, strict=True)] for x in _by_part(outputs_of_parts))
    expected = training.criterion(embeddings, maps, views.locations)
    expected["loss"].backward()
    torch.manual_seed(5)
    losses, output = training_step(training, views, 0.0)
    assert losses["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-12)
    assert torch.equal(torch.get_rng_state(), after)
    for (name, parameter), own in zip(model.named_parameters(), training.state.model.parameters(), strict=True):
        torch.testing.assert_close(own.grad, parameter.grad, rtol=1e-9, atol=1e-11, msg=name)
    # The pattern of what is dropped changes the loss, so that the first assertion means something.
    torch.manual_seed(6)
    assert training_step(training, views, 0.0)[0]["loss"].item() != pytest.approx(losses["loss"].item(), rel=1e-6)
    assert len(output.criterion_inputs()) == 4


def _by_part(outputs_of_parts):
    return [part.embeddings for part in outputs_of_parts], [part.maps for part in outputs_of_parts]


def test_convolutions_are_chosen_for_the_device(make, monkeypatch) -> None:
    chosen = []
    monkeypatch.setattr(pretrain.training, "choose_convolutions", chosen.append)
    make()
    assert chosen == [torch.device("cpu")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_half_precision_takes_nearly_the_same_step(make, precision, tolerance, device) -> None:
    options = [*CONVNEXT, "optimizer.name=lars"]  # whose step is as long as the gradient says, AdamW's as the sign
    full, losses = weights_after(make(*options), 2)
    training = make(*options, f"train.precision={precision}", device=device)
    if precision == "float16":  # from the usual 2^16 the first steps would be passed over until the scale fits
        training.state.scaler = torch.amp.GradScaler(device, init_scale=16.0)
    half, losses_of_half = weights_after(training, 2)
    assert losses_of_half == pytest.approx(losses, rel=tolerance)
    assert losses_of_half != losses
    for key, value in full.items():
        assert half[key].dtype == torch.float32
        torch.testing.assert_close(half[key], value, rtol=tolerance, atol=tolerance, msg=key)
    assert bool(training.state.scaler.state_dict()) == (precision == "float16")


def test_a_gradient_too_large_for_float16_is_not_taken(make) -> None:
    """The scale is halved until it fits, and the weights wait."""
    training = make(*CONVNEXT, "train.precision=float16")
    training.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = copy.deepcopy(training.state.model.state_dict())
    training_step(training, batch(64, 2), 1e-2)
    assert training.state.scaler.get_scale() == 2.0**59
    assert all(torch.equal(before[key], value) for key, value in training.state.model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        ([], 3),  # backbone, expander, projector
        (["model.local_stages=[-2,-1]"], 4),  # with a projector for each stage
    ],
)
def test_compiled_is_the_same_step(make, monkeypatch, tmp_path, options, graphs) -> None:
    """Traced and differentiated as for the usual backend, which would then spend minutes in the C++ compiler.

    All of the network is compiled, each module as one graph, and a checkpoint goes on without compilation.
    """
    options = [*CONVNEXT, "optimizer.name=lars", *options]
    compile_module, made = torch.nn.Module.compile, []

    def backend(graph, inputs):
        made.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend=backend))
    torch._dynamo.reset()
    whole, losses = weights_after(make(*options), 2)
    training = make(*options, "machine.compile=true")
    compiled, losses_of_compiled = weights_after(training, 2)
    assert len(made) == graphs
    assert losses_of_compiled == pytest.approx(losses, rel=1e-4)
    assert compiled.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4, msg=key)
    training.state.save(tmp_path / "other.pt")
    resumed = make(*options)
    assert resumed.state.load(tmp_path / "other.pt")
    next_losses = [training_step(t, batch(64, 2, 2), 1e-2)[0]["loss"].item() for t in (training, resumed)]
    assert next_losses[0] == pytest.approx(next_losses[1], rel=1e-4)
    assert len(made) == graphs


def test_colour_on_the_device_is_compiled_too(make, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(batch_colour, "compiled_version", lambda work: compiled.append(work) or work)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)
    first = next(make("views.execution=device").loader.batches(0, 1))
    assert not compiled
    again = next(make("views.execution=device", "machine.compile=true").loader.batches(0, 1))
    assert {batch_colour.jitter_rows, batch_colour.shifted_sum} < set(compiled)
    for one, other in zip(first.images, again.images, strict=True):
        assert (one - other).abs().mean() < 1e-3  # blurred by sums, not by a convolution


@pytest.mark.parametrize(
    ("name", "args", "grid"),
    [
        ("convnext_atto", "{depths: [1, 1, 1, 1], dims: [8, 16, 24, 32], drop_path_rate: 0.3, ls_init_value: null}", 2),
        ("resnet18", "{output_stride: 8, drop_path_rate: 0.2}", 8),  # dilated: 8 x 8 instead of 2 x 2
        ("mobilenetv3_small_050", "{}", 2),  # with layers after the map, which get no gradient
        ("regnetx_002", "{}", 2),
    ],
)
def test_networks_of_timm_by_name_and_arguments(make, name, args, grid) -> None:
    training = make(f"model.backbone.name={name}", f"model.backbone.args={args}", "views.large_size=64")
    assert training.state.model.backbone.grid_size(64) == (grid, grid)
    losses, _ = training_step(training, batch(64, grid), 1e-3)
    assert torch.isfinite(losses["loss"])
