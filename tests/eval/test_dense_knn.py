"""Dense kNN equals a plain computation of the whole protocol, and its parts do what their definitions say."""

import os
import signal

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric
from PIL import Image

from data.catalog import open_dataset
from data.config import IMAGENET, DataConfig, ScenesConfig
from eval import dense_knn
from eval.config import DenseKnnConfig
from eval.dense_knn import (
    cell_distributions,
    class_scores,
    close_gaps,
    confusion,
    draw_positions,
    mean,
    predict,
    vote,
)
from eval.features import PooledFeatures
from eval.knn import normalise_rows
from eval.parent import load_parent_backbone, open_parent
from runtime import config as configs
from runtime.errors import UserError

CONFIG = "eval/configs/dense_knn_scenes.yaml"
ALL = ["memory=null", "neighbours=[5,1,30]", "batch_size=7"]
CLASSES, TEMPERATURE = 11, 0.02


def bilinear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, classes) -> (height, width, classes), pixel centres aligned, edges repeated."""

    def weights(small: int, large: int) -> np.ndarray:
        matrix = np.zeros((large, small))
        for pixel in range(large):
            at = min(max((pixel + 0.5) * small / large - 0.5, 0), small - 1)
            low = min(int(at), max(small - 2, 0))
            matrix[pixel, low] += 1 - (at - low)
            matrix[pixel, min(low + 1, small - 1)] += at - low
        return matrix

    rows, columns = weights(values.shape[0], height), weights(values.shape[1], width)
    return np.einsum("Hh,Ww,hwc->HWc", rows, columns, values)


def split_by_hand(layout, backbone, split: str):
    """Unit features (n, 64, C), label shares (n, 64, classes) and masks (n, 32, 32) of a split, in float64."""
    vectors, shares, masks = [], [], []
    for name in layout.names(split):
        pixels = np.array(Image.open(layout.image(split, name)).convert("RGB")) / 255
        normal = (pixels - IMAGENET[0]) / IMAGENET[1]
        with torch.no_grad():
            feature_map = backbone(torch.tensor(normal.transpose(2, 0, 1))[None])[0][0]
        rows = feature_map.flatten(1).T.numpy()
        vectors.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        mask = np.array(Image.open(layout.mask(split, name)))
        masks.append(mask)
        cells = [mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] for row in range(8) for column in range(8)]
        shares.append(
            [[(cell == label).sum() / max((cell != 255).sum(), 1) for label in range(CLASSES)] for cell in cells]
        )
    return np.array(vectors), np.array(shares), np.array(masks)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
def test_equals_the_protocol_done_by_hand(scenes, parent, evaluate, monkeypatch, double):
    """In float64: random weights give features so alike that rounding would choose among the neighbours."""

    def maps(self, images):
        with torch.no_grad():
            return self.backbone.double()(images.double())[0]

    monkeypatch.setattr(PooledFeatures, "maps", maps)
    code, error, run = evaluate(dense_knn.main, parent, CONFIG, *scenes, *ALL)
    assert code == 0, error
    result = run.result()
    layout = open_dataset(DataConfig(scenes=ScenesConfig(train=60, val=20))).segmentation()
    backbone = load_parent_backbone(open_parent(parent)).double().eval()
    known, known_shares, _ = split_by_hand(layout, backbone, "train")
    asked, _, masks = split_by_hand(layout, backbone, "val")
    bank, bank_shares = known.reshape(60 * 64, -1), known_shares.reshape(60 * 64, CLASSES)
    for k, score in zip([5, 1, 30], result["miou_each"], strict=True):
        areas = []
        for vectors, mask in zip(asked, masks, strict=True):
            similarity = vectors @ bank.T
            order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
            nearest = np.take_along_axis(similarity, order, 1)
            weights = np.exp((nearest - nearest[:, :1]) / TEMPERATURE)
            weights /= weights.sum(1, keepdims=True)
            shares = np.einsum("nk,nkc->nc", weights, bank_shares[order]).reshape(8, 8, CLASSES)
            predicted = bilinear(shares, 32, 32).argmax(-1)
            areas.append(IoUMetric.intersect_and_union(torch.tensor(predicted), torch.tensor(mask), CLASSES, 255))
        intersection, union = (sum(area[part].double() for area in areas) for part in (0, 1))
        assert score == pytest.approx(100 * float(np.nanmean((intersection / union).numpy())), abs=0.01)
    assert result["miou"] == result["miou_each"][0]
    assert (result["k"], result["memory_positions"], result["features"]) == (5, 60 * 64, backbone.channels)
    assert mean(list(result["iou"].values())) == pytest.approx(result["miou"])


def test_workers_batches_and_chunks_change_nothing(scenes, parent, evaluate):
    options = [*scenes, "neighbours=[5]", "memory=500"]
    _, _, run = evaluate(dense_knn.main, parent, CONFIG, *options, "machine.workers=0")
    first = {**run.result(), "seconds": 0}
    assert first["memory_positions"] == 500
    (run.path / "result.json").unlink()
    _, error, run = evaluate(dense_knn.main, parent, CONFIG, *options, "machine.workers=2", "machine.chunk_megabytes=1")
    assert {**run.result(), "seconds": 0} == first, error
    _, _, other = evaluate(dense_knn.main, parent, CONFIG, *options, "batch_size=3")
    assert other.result()["miou"] == pytest.approx(first["miou"], abs=0.02)
    _, _, other = evaluate(dense_knn.main, parent, CONFIG, *options, "seed=1")
    assert other.result()["miou"] != first["miou"]


def test_gaps_of_images_with_few_labels_are_closed_in_order():
    columns = torch.arange(10.0)[:, None].repeat(1, 3), torch.arange(10.0)[:, None]
    kept = close_gaps(columns, [0, 3, 6, 8, 10], [3, 1, 0, 2])
    assert [column[:kept, 0].tolist() for column in columns] == [[0, 1, 2, 3, 8, 9]] * 2
    assert close_gaps(columns, [0, 5, 10], [5, 5]) == 10


def test_cells_of_a_mask_whose_sides_the_grid_does_not_divide():
    random = np.random.default_rng(0)
    mask = torch.tensor(random.choice([0, 1, 2, 255], (7, 11)), dtype=torch.uint8)
    mask[:3, :4] = 255
    shares = cell_distributions(mask, (3, 4), 3, 255)
    expected = np.zeros((12, 3))
    for row in range(7):
        for column in range(11):
            if mask[row, column] != 255:
                expected[row * 3 // 7 * 4 + column * 4 // 11, mask[row, column]] += 1
    assert shares[0].tolist() == [0, 0, 0]  # nothing labelled
    assert shares.numpy() == pytest.approx(expected / expected.sum(1, keepdims=True).clip(1))


def test_rare_classes_are_drawn_first_and_unlabelled_positions_never():
    shares = torch.zeros(100, 3)
    shares[:90, 0] = 1
    shares[90:93, 1] = 1
    drawn = torch.stack([draw_positions(shares, 20, seed, 0) for seed in range(200)])
    assert drawn.max() < 93
    assert (drawn.diff(dim=1) > 0).all()
    # By the definition: 90 scores of 90 u against 3 of 3 u; those of the rare class are all but always among the 20.
    assert (drawn >= 90).sum() > 0.95 * 200 * 3
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(draw_positions(shares, 20, 5, 0), drawn[5])
    assert draw_positions(shares, 93, 0, 0).tolist() == list(range(93))


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 12, 1 << 30])
def test_votes_are_means_weighted_by_similarity(chunk_bytes):
    random = torch.Generator().manual_seed(0)
    bank = normalise_rows(torch.randn(90, 6, generator=random, dtype=torch.float64))
    shares = torch.rand(90, 4, generator=random, dtype=torch.float64)
    queries = normalise_rows(torch.randn(50, 6, generator=random, dtype=torch.float64))
    found = vote((bank, shares), queries, [7, 1, 30], 0.1, chunk_bytes)
    for k, votes in zip([7, 1, 30], found, strict=True):
        for query, row in zip(queries, votes, strict=True):
            similarity = (bank @ query).tolist()
            order = sorted(range(90), key=lambda i: (-similarity[i], i))[:k]
            weights = np.exp([similarity[i] / 0.1 for i in order])
            expected = sum(weight * shares[i].numpy() for weight, i in zip(weights, order, strict=True)) / weights.sum()
            assert row.numpy() == pytest.approx(expected, abs=1e-12)


def test_scores_equal_mmsegmentations():
    random = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 5, (6, 9, 13), generator=random)
    masks[masks == 4] = 255  # class 4 is predicted nowhere and labelled nowhere
    predictions = torch.randint(0, 4, masks.shape, generator=random)
    pairs = list(zip(predictions, masks, strict=True))
    found = sum(confusion(predicted, mask, 5, 255) for predicted, mask in pairs)
    areas = [IoUMetric.intersect_and_union(predicted, mask, 5, 255) for predicted, mask in pairs]
    sums = [sum(area[part].double() for area in areas) for part in range(4)]
    expected = IoUMetric.total_area_to_metrics(*sums, ["mIoU"], None, 1)
    scores = class_scores(found)
    assert scores["iou"][4] is None
    assert scores["iou"][:4] == pytest.approx(100 * expected["IoU"][:4])
    assert mean(scores["iou"]) == pytest.approx(100 * np.nanmean(expected["IoU"]))
    assert mean(scores["accuracy"]) == pytest.approx(100 * np.nanmean(expected["Acc"]))


def test_predictions_have_the_size_of_the_mask():
    random = np.random.default_rng(0)
    distributions = random.random((3, 4, 5))
    expected = bilinear(distributions, 11, 7).argmax(-1)
    assert predict(torch.tensor(distributions.transpose(2, 0, 1)), (11, 7)).tolist() == expected.tolist()


def test_a_mask_of_another_size_is_named(scenes, parent, evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path / "own"))
    folder = open_dataset(DataConfig(scenes=ScenesConfig(train=60, val=20))).segmentation().root
    mask = sorted((folder / "SegmentationClass").iterdir())[0]
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(mask)
    code, error, _ = evaluate(
        dense_knn.main, parent, CONFIG, "data.name=vocfolder", f"data.root={folder}", *ALL, "machine.workers=0"
    )
    assert code == 2, error
    assert mask.name in error or "classes.txt" in error


def test_a_stop_ends_with_75(scenes, parent, evaluate, monkeypatch):
    maps = PooledFeatures.maps

    def terminated(self, images):
        os.kill(os.getpid(), signal.SIGTERM)
        return maps(self, images)

    monkeypatch.setattr(PooledFeatures, "maps", terminated)
    code, _, run = evaluate(dense_knn.main, parent, CONFIG, *scenes, *ALL)
    assert (code, run.result()) == (75, None)


def test_more_neighbours_than_positions(scenes, parent, evaluate):
    code, error, _ = evaluate(dense_knn.main, parent, CONFIG, *scenes, "memory=null", "neighbours=[4000]")
    assert (code, "holds 3840 positions" in error) == (2, True), error


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["neighbours=[]"], "1 or more values"),
        (["neighbours=[5,5]"], "each only once"),
        (["memory=20"], "at most memory"),
        (["memory=0"], "1 or more"),
        (["temperature=0"], "0.005 or more"),
    ],
)
def test_impossible_values(overrides, words):
    with pytest.raises(UserError, match=words):
        configs.load(DenseKnnConfig, CONFIG, overrides)


@pytest.mark.parametrize("name", ["scenes", "voc"])
def test_configs_are_whole(name):
    config = configs.load(DenseKnnConfig, f"eval/configs/dense_knn_{name}.yaml")
    assert (config.data.name, config.neighbours[0], config.temperature) == (name, 30, 0.02)
