"""A criterion of the user's own: given its arguments, trained, saved, and the same over several processes."""

import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from data.loader import PretrainLoader
from pretrain.__main__ import main
from pretrain.config import PretrainConfig, identity
from pretrain.criterion import RESERVED, register_criterion
from runtime import config as configs
from runtime.errors import UserError
from tests.pretrain.conftest import only_run

FOLDER = Path(__file__).parent  # of own_criterion.py
WORKER = FOLDER / "worker.py"
STEPS = 4
PREDICTED = "loss={name: predicted, args: {variance: 2.0}}"
TERMS = {"loss", "similarity", "spread", "local"}
ROW_KEYS = {*RESERVED, *TERMS}


@pytest.fixture(autouse=True, scope="module")
def importable(forget: Callable[[str], None]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield
    forget("own_criterion")


def load(*overrides: str) -> PretrainConfig:
    return configs.load(PretrainConfig, "pretrain/configs/quickstart.yaml", ["imports=[own_criterion]", *overrides])


@pytest.fixture
def arguments(image_folder: Path):
    def make(runs: Path, *overrides: str) -> list[str]:
        return [
            *("--config=pretrain/configs/quickstart.yaml", "imports=[own_criterion]", "data.name=imagefolder"),
            *(f"data.root={image_folder}", "train.precision=float32", "train.batch_size=12"),
            *("model.expander=32-24", "model.projector=16-12", "probe.enabled=false"),
            *(f"train.duration={STEPS} steps", "optimizer.warmup=1 steps", "diagnostics_images=24"),
            *("machine.log_steps=1", "machine.keep_at=[2 steps]", f"machine.runs={runs}", *overrides),
        ]

    return make


@pytest.fixture
def double() -> Iterator[None]:
    finish = PretrainLoader.finish
    runpy.run_path(str(WORKER))["double"]()
    yield
    PretrainLoader.finish = finish
    torch.set_default_dtype(torch.float32)


def checkpoint(runs: Path) -> dict:
    return torch.load(only_run(runs).path / "checkpoint.pt", weights_only=True)


def assert_same(one: dict, other: dict, tolerance: float = 0.0) -> None:
    for part in ("model", "criterion"):
        assert one.get(part, {}).keys() == other.get(part, {}).keys()
        for key, value in one.get(part, {}).items():
            torch.testing.assert_close(other[part][key], value, rtol=tolerance, atol=tolerance, msg=key)


def test_vicregl_s_as_one_of_the_user_s_own_trains_the_same_network(arguments, tmp_path) -> None:
    main(arguments(tmp_path / "listed"))
    main(arguments(tmp_path / "own", "loss.name=published"))
    assert only_run(tmp_path / "own").path.name.startswith("scenes_resnet-published-alpha0.75-seed0-")
    assert_same(checkpoint(tmp_path / "listed"), checkpoint(tmp_path / "own"))
    assert "criterion" not in checkpoint(tmp_path / "listed")


@pytest.mark.parametrize("options", [[], ["optimizer.name=lars", "train.clip_norm=0.1"]])
def test_its_parameters_are_trained_and_a_run_goes_on_exactly(arguments, tmp_path, options) -> None:
    main(arguments(tmp_path / "whole", PREDICTED, *options))
    end, run = checkpoint(tmp_path / "whole"), only_run(tmp_path / "whole")
    kept = torch.load(run.path / "checkpoints" / "step-00000002.pt", weights_only=True)["criterion"]
    trained = [key for key in kept if key.endswith(("weight", "running_mean"))]
    assert all(not torch.equal(kept[key], end["criterion"][key]) for key in trained)
    for row in run.metrics():
        assert row.keys() >= TERMS
        assert row.keys() <= ROW_KEYS

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    path = only_run(tmp_path / "resumed").path
    (path / "result.json").unlink()
    shutil.copyfile(path / "checkpoints" / "step-00000002.pt", path / "checkpoint.pt")
    main(arguments(tmp_path / "resumed", PREDICTED, *options))
    assert_same(end, checkpoint(tmp_path / "resumed"))


def test_in_parts_of_the_batch_it_is_the_same(arguments, tmp_path, double) -> None:
    convnext = [
        "model.backbone.name=convnext_atto",
        "model.backbone.args={depths: [1, 1, 1, 1], dims: [8, 8, 8, 8]}",
        *("model.projector_norm=layer", "optimizer.name=adamw"),
    ]
    main(arguments(tmp_path / "whole", *convnext, PREDICTED))
    main(arguments(tmp_path / "parts", *convnext, PREDICTED, "train.accumulate=3"))
    assert_same(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts"), 1e-9)
    drawn = []
    for count in (1, 3):
        runs = tmp_path / f"drawn{count}"
        main(arguments(runs, *convnext, "loss.name=drawn", f"train.accumulate={count}"))
        drawn.append([row["number"] for row in only_run(runs).metrics()])
    assert len(set(drawn[0])) == STEPS
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_two_processes_are_one(arguments, tmp_path, ranks, double) -> None:
    """Its mean over samples, its gathered variance, its BatchNorm and its predictor, in float64."""
    one, two = (arguments(tmp_path / name, PREDICTED, "train.clip_norm=0.1") for name in ("one", "two"))
    ended = ranks.ended(ranks(2, WORKER, "double", *two, PYTHONPATH=f"{Path.cwd()}:{FOLDER}"))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert " in process 0, " in ended[0][1]  # the printed loss is that of its share
    main(one)
    assert only_run(tmp_path / "one").path.name == only_run(tmp_path / "two").path.name
    rows = [only_run(tmp_path / name).metrics() for name in ("one", "two")]
    for first, second in zip(*rows, strict=True):
        assert {term: first[term] for term in TERMS} == pytest.approx({term: second[term] for term in TERMS}, rel=1e-9)
    assert_same(checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two"), 1e-9)


def test_its_name_and_arguments_are_in_the_identity_and_the_published_one_s_are_not() -> None:
    published = identity(load())
    assert not {"name", "args"} & published.config["loss"].keys()
    first, second = (identity(load(f"loss={{name: predicted, args: {{variance: {v}}}}}")) for v in (1.0, 2.0))
    assert len({published.hash, first.hash, second.hash}) == 3
    assert first.config["loss"]["args"] == {"variance": 1.0}
    # What VICRegL does not use at alpha 1, another criterion may.
    matches = [f"loss.num_matches=[{count},{count}]" for count in (3, 4)]
    assert len({identity(load("loss.alpha=1", count)).hash for count in matches}) == 1
    assert len({identity(load("loss.alpha=1", count, "loss.name=published")).hash for count in matches}) == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss.name=predictor", "loss.name = 'predictor' is not possible; allowed: vicregl, predicted, published"),
        ("loss.args={variance: 1.0}", "loss.args = {'variance': 1.0} is not possible; allowed: none for name: vicregl"),
        (
            "loss={name: predicted, args: {spread: 1}}",
            "TypeError: got an unexpected keyword argument 'spread'; it takes",
        ),
        ("loss={name: predicted, args: {variance: -1}}", "refused by the criterion 'predicted': ValueError: variance"),
        ("loss.name=not_a_module", "criterion 'not_a_module': expected a torch.nn.Module, got a str"),
        ("imports=[]", "config: imports = {} is not possible; allowed: the package that registers loss.name = 'drawn'"),
    ],
)
def test_what_it_cannot_be_made_of_is_named_before_anything_is_made(override: str, expected: str) -> None:
    random = torch.get_rng_state()
    load()
    with pytest.raises(UserError) as caught:
        load(*(["loss.name=drawn"] if override == "imports=[]" else []), override)
    assert expected in str(caught.value)
    load(PREDICTED)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (lambda e, m: e[0].mean(), r"expected a dict of tensors of one number, `loss` and terms"),
        (lambda e, m: {"total": e[0].mean() + m[0].mean()}, r"returned \{'total': \(\)\}"),
        (lambda e, m: {"loss": e[0].mean(1) + m[0].mean()}, r"returned \{'loss': \(12,\)\}"),
        (lambda e, m: {"loss": e[0].mean() + m[0].mean(), "step": e[0].mean()}, "these are not: step, epoch"),
        (lambda e, m: {"loss": e[0].mean()}, "does not depend on the maps, .* with loss.alpha=1 they are not"),
        (lambda e, m: {"loss": m[0].mean()}, "does not depend on the embeddings, .* with loss.alpha=0 they are not"),
        (lambda e, m: {"loss": m[0].mean().detach()}, "does not depend on the embeddings"),
    ],
)
def test_what_it_returns_is_checked(terms, expected, arguments, tmp_path, monkeypatch) -> None:
    class Wrong(torch.nn.Module):
        def forward(self, embeddings, maps, locations):
            return terms(embeddings, maps)

    monkeypatch.setattr("pretrain.criterion._CRITERIA", {"wrong": lambda loss, embedding, channels: Wrong()})
    with pytest.raises(UserError, match=expected):
        main(arguments(tmp_path, "loss.name=wrong"))


@pytest.mark.parametrize("name", ["vicregl", "published", "two words", ""])
def test_a_name_is_refused(name: str) -> None:
    load()
    with pytest.raises(UserError, match=r"registered already|expected a name of letters"):
        register_criterion(name, lambda loss, embedding, channels: torch.nn.Identity())
