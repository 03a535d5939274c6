"""What the pictures show, against the numbers computed plainly; and the command on small real runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.decomposition import PCA
from torch import nn

from analysis.pictures import matches
from analysis.pictures.__main__ import main, study_panels
from analysis.pictures.maps import Basis, brightness, overlay
from analysis.pictures.matches import distances, place_colours
from analysis.pictures.network import Images, Network
from analysis.pictures.segmentations import Segmentation, Segmented, load_segmentation, refuse_different_images
from data.config import ViewsConfig
from eval import segmentation
from eval.predictions import save_predictions
from pretrain import __main__ as pretrain
from pretrain.config import PretrainConfig
from pretrain.criterion import LossConfig
from runtime.errors import UserError
from runtime.rundir import Run
from sweeps.graph import Graph, build
from sweeps.study import load_study
from tests.analysis.conftest import make_study
from tests.vicregl.test_matched_pairs import pairs_of_criterion
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig, CriterionConfig, ModelConfig
from vicregl.local import matched_pairs


def test_colours_are_principal_components_with_the_signs_of_the_light() -> None:
    random = np.random.default_rng(0)
    maps = random.normal(size=(5, 4, 4, 12)) * np.linspace(3, 0.2, 12)
    light = random.normal(size=(5, 4, 4)) + maps[..., 1]
    basis = Basis.fit(torch.tensor(maps), torch.tensor(light))
    rows = maps.reshape(-1, 12)
    expected = PCA(3).fit(rows)
    scores = expected.transform(rows)
    signs = np.sign([np.corrcoef(scores[:, k], light.ravel())[0, 1] for k in range(3)])
    low, high = np.quantile(scores * signs, [0.02, 0.98], axis=0)
    found = basis.colours(torch.tensor(maps)).reshape(-1, 3)
    assert found == pytest.approx(np.clip((scores * signs - low) / (high - low), 0, 1), abs=1e-9)
    assert basis.shares.numpy() == pytest.approx(expected.explained_variance_ratio_)


def test_a_collapsed_map_is_grey_and_no_error() -> None:
    maps = torch.ones(2, 3, 3, 8)
    assert (Basis.fit(maps, torch.rand(2, 3, 3)).colours(maps) == 0.5).all()


def test_light_and_overlay() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = 200
    assert brightness([image], (2, 2))[0].numpy() == pytest.approx(np.array([[200, 200], [0, 0]]), abs=40)
    over = overlay(image, np.ones((2, 2, 3)))
    assert over[0, 0] == pytest.approx(0.5 + 100 / 255)
    assert over[-1, -1] == pytest.approx(0.5)


def test_matches_by_feature_are_the_nearest_and_their_distance_is_told() -> None:
    random = torch.Generator().manual_seed(0)
    first, second = (torch.rand(4, 4, 7, generator=random) for _ in range(2))
    pairs = matched_pairs(CriterionConfig(num_matches=[5, 5]), "feature", first, second).tolist()
    a, b = first.reshape(16, 7).numpy(), second.reshape(16, 7).numpy()
    between = np.array([[np.linalg.norm(x - y) for y in b] for x in a])
    wanted = sorted(np.argsort(between.min(1))[:5].tolist())
    assert pairs == [[i, int(between[i].argmin())] for i in wanted]
    places = [torch.rand(4, 4, 2, generator=random) * 32 for _ in range(2)]
    flat = [grid.reshape(16, 2).numpy() for grid in places]
    assert distances(pairs, places) == pytest.approx([np.hypot(*(flat[0][i] - flat[1][j])) for i, j in pairs])
    corners = place_colours([(0, 0), (3, 0), (12, 0), (15, 0)], (4, 4))
    assert len(set(corners)) == 4


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(num_matches=[20, 4], profile="reference"),
        LossConfig(num_matches=[20, 4], select="threshold", location_threshold=3.0, feature_threshold=0.8),
    ],
    ids=["reference", "threshold"],
)
def test_drawn_matches_are_those_of_the_criterion(loss: LossConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model, views = ModelConfig(BackboneConfig("scenes_resnet")), ViewsConfig(large_size=32, large_scale=[0.5, 1.0])
    config = PretrainConfig(loss=loss, model=model, views=views)
    torch.manual_seed(0)
    backbone = create_backbone(config.model.backbone).eval()
    projector = nn.Linear(backbone.channels, 16, bias=False)
    nn.init.normal_(projector.weight)
    network = Network("run", config, backbone, projector)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    drawn: list[list[tuple[int, int]]] = []
    monkeypatch.setattr(matches, "join", lambda row, one, other, maker, pairs, colours: drawn.append(pairs))
    plt.close(matches.draw_matches(network, Images({0: image})))

    maker = network.view_maker()
    plans = maker.draw(64, 64, network.generator(0))[:2]
    maps = [m[None].expand(2, -1, -1, -1) for m in network.compared(matches.rendered(maker, image, plans))]
    locations = [maker.locations([plan] * 2, view) for view, plan in enumerate(plans)]
    used = pairs_of_criterion(loss, maps, locations, monkeypatch)
    for kind, pairs in zip(("location", "feature"), drawn, strict=True):
        assert {(one, other) for one, other in pairs} == used[kind]
    sizes = {kind: len(pairs) for kind, pairs in used.items()}
    assert sizes["feature"] == 64 if loss.profile == "reference" else all(20 < n < 64 for n in sizes.values()), sizes


def test_images_are_normalised_as_the_pretraining_did() -> None:
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]
    config = PretrainConfig(
        model=ModelConfig(BackboneConfig("scenes_resnet")), views=ViewsConfig(large_size=32, mean=mean, std=std)
    )
    torch.manual_seed(0)
    backbone = create_backbone(config.model.backbone).eval()
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    maps = Network("run", config, backbone, None).maps([image])
    expected = torch.tensor((image / 255 - mean) / std).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        torch.testing.assert_close(maps, backbone(expected)[0].permute(0, 2, 3, 1))


def test_the_score_below_a_segmented_image() -> None:
    truth = np.array([[0, 0, 1], [1, 255, 255]], np.uint8)
    prediction = np.array([[0, 1, 1], [1, 0, 2]], np.uint8)
    one = Segmented("x", np.zeros((2, 3, 3), np.uint8), truth, prediction)
    assert one.miou(3) == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)  # pixels of 255 count for nothing


def test_wrong_paths_and_stages_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        main([str(tmp_path / "none")])
    with pytest.raises(UserError, match="no run was given"):
        main([])
    (tmp_path / "run.yaml").write_text("{stage: linear, hash: a, config: {}}")
    with pytest.raises(UserError, match="pictures are of pretrain and segmentation"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match="--images = 0"):
        main([str(tmp_path), "--images", "0"])


STUDY = """
name: tiny
question: "?"
pretrain:
  config: pretrain/configs/quickstart.yaml
  set: {data.scenes.train: 40, data.scenes.val: 12, train.duration: 2 steps, optimizer.warmup: 1 steps,
        train.batch_size: 8, diagnostics_images: 8}
  grid: {loss.alpha: [0.5, 1.0], seed: [0, 1]}
evals:
  seg: {stage: segmentation, config: eval/configs/seg_scenes.yaml,
        set: {data.scenes.train: 40, data.scenes.val: 12, iterations: 4, batch_size: 4}}
report: {vary: loss.alpha, baseline: 1.0, x: pretrain.rank_pooled, y: seg.miou}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    """A study of two alphas and two seeds: of seed 0 alpha 0.5 is segmented, alpha 1 only pretrained; of 1 nothing."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "study.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VICREGL_DATA", str(folder / "data"))
        graph = build(load_study(folder / "study.yaml"), [f"machine.runs={folder / 'runs'}"])
        half, one = (next(p for p in graph.points if p.varied == {"loss.alpha": a, "seed": 0}) for a in (0.5, 1.0))
        for point in (half, one):
            pretrain.main(point.pretrain.argv(["machine.device=cpu"])[3:])
        segmentation.main(half.evals["seg"].argv(["machine.device=cpu", "machine.predictions=12"])[3:])
        yield graph


def test_a_panel_is_one_curve_at_its_first_seed() -> None:
    study = make_study({"loss.alpha": [0.5, 1.0], "loss.local": ["both", "location"], "seed": [3, 4]})
    controls = {"no pretraining": {"train.duration": "0 steps", "optimizer.warmup": "0 steps"}}
    pretrain = study.pretrain.replace(config="pretrain/configs/quickstart.yaml", controls=controls)
    report = study.report.replace(x="pretrain.probe_top1", y="pretrain.rank_pooled")
    both, location = study_panels(build(study.replace(pretrain=pretrain, evals={}, report=report)))
    assert (both.name, location.name) == ("local = both", "local = location")
    assert [(p.control, p.varied["loss.alpha"], p.varied["seed"]) for p in both.points] == [
        (None, 0.5, 3),
        (None, 1.0, 3),
        ("no pretraining", None, 3),
    ]


@pytest.mark.slow
def test_pictures_of_real_runs(made: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half, one = made.points[0], made.points[2]
    runs = [half.pretrain.run.path, one.pretrain.run.path, half.evals["seg"].run.path]
    main([*map(str, runs), "--out", str(tmp_path), "--images", "3"])
    files = [Path(line) for line in capsys.readouterr().out.split()]
    assert [file.name for file in files] == ["matches.png", "maps.png"] * 2 + ["segmentations.png"]
    before = [file.read_bytes() for file in files]
    for file in files:
        with Image.open(file) as image:
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert np.asarray(image.convert("L")).std() > 10
    main([str(runs[0]), "--out", str(tmp_path), "--images", "3"])
    assert [file.read_bytes() for file in files] == before
    study = made.study.file
    main(["--study", study, f"machine.runs={runs[0].parents[1]}", "--out", str(tmp_path / "study"), "--images", "2"])
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == ["maps.png", "seg.png"]
    with pytest.raises(UserError, match="is not a folder"):
        main([str(made.points[1].pretrain.run.path)])


@pytest.mark.slow
def test_predictions_over_all_of_val_give_the_runs_own_miou(made: Graph) -> None:
    run = made.points[0].evals["seg"].run
    found = load_segmentation(run.path, 1000)
    assert len(found.images) == 12
    areas = np.zeros((2, 11))
    for one in found.images:
        counted = one.truth != 255
        for k in range(11):
            truth, predicted = one.truth[counted] == k, one.prediction[counted] == k
            areas[:, k] += (truth & predicted).sum(), (truth | predicted).sum()
    shares = areas[0][areas[1] > 0] / areas[1][areas[1] > 0]
    assert 100 * shares.mean() == pytest.approx(found.miou)


@pytest.mark.slow
def test_predictions_are_drawn_from_the_run_alone(made: Graph, tmp_path: Path) -> None:
    """Without its pretraining and its checkpoint; of a run without predictions, or beside other data, none."""
    run = made.points[0].evals["seg"].run
    copy = Run(Path(shutil.copytree(run.path, tmp_path / "runs" / run.name)))
    (copy.path / "checkpoint.pth").unlink()
    kept = [image.name for image in load_segmentation(copy.path, None).images]
    assert [image.name for image in load_segmentation(copy.path, 3).images] == [kept[k] for k in (0, 6, 11)]
    for changed, words in (
        ({"x": np.zeros((32, 32), np.uint8)}, "which is not in val"),
        ({kept[0]: np.zeros((8, 9), np.uint8)}, "and its mask in"),
    ):
        save_predictions(copy, changed)
        with pytest.raises(UserError, match=words):
            load_segmentation(copy.path, None)
    (copy.path / "predictions.npz").unlink()
    with pytest.raises(UserError, match="give the run's command again"):
        load_segmentation(copy.path, None)


def test_runs_side_by_side_show_the_same_images() -> None:
    images = [Segmented(name, np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), np.zeros((2, 2))) for name in "ab"]
    one, other = (Segmentation(name, None, shown, 0.0) for name, shown in (("r", images), ("s", images[:1])))  # type: ignore[arg-type]
    refuse_different_images([one, one])
    with pytest.raises(UserError, match="r and s kept predictions of different images"):
        refuse_different_images([one, other])


def test_checkpoints_that_a_study_is_given_are_not_drawn() -> None:
    """They may be networks that no pretraining's config describes."""
    graph = build(load_study("scenes_zoo"), ["machine.runs=/nowhere"])
    drawn = [point.pretrain.stage.name for panel in study_panels(graph) for point in panel.points]
    assert drawn == ["pretrain"] * len(drawn)
    assert 0 < len(drawn) < len(graph.points)
    graph.points[:] = [point for point in graph.points if point.pretrain.stage.name != "pretrain"]
    with pytest.raises(UserError, match=r"scenes_zoo.yaml has imported weights alone; pictures .* of its pretrainings"):
        study_panels(graph)
