"""kNN equals a brute force and scikit-learn, its ties are defined, and its command chooses k without val."""

import math
import os
import signal
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from data.catalog import open_dataset
from data.transforms import LabelledDataset, eval_transform
from eval import knn
from eval.config import KnnConfig
from eval.features import ImageBatches, PooledFeatures
from eval.knn import _largest, accuracies, nearest, normalise_rows, ranked_classes
from eval.parent import load_parent_backbone, open_parent
from runtime import config as configs
from runtime.errors import UserError
from runtime.world import World
from sweeps.stages import get_stage

CONFIG = "eval/configs/knn_scenes.yaml"
SMALL = ["image_size=16", "resize=16", "neighbours=[1,3,8]", "held_out=0.2"]
CLASSES, KS, TEMPERATURE = 7, [1, 4, 9, 30], 0.07


@pytest.fixture
def features():
    """(bank, bank labels, queries, labels), unit length; some bank rows stand twice, so that similarities tie."""
    random = torch.Generator().manual_seed(0)
    bank = torch.randint(-2, 3, (90, 3), generator=random).float()
    bank = torch.cat([bank, bank[:40]])
    queries = torch.randn(50, 3, generator=random)
    labels = torch.randint(0, CLASSES, (len(bank),), generator=random)
    truth = torch.randint(0, CLASSES, (50,), generator=random)
    return normalise_rows(bank), labels, normalise_rows(queries), truth


def brute_force(bank, bank_labels, queries, truth, k, temperature):
    """Top-1 and top-5 percent by plain Python."""
    hits = [0, 0]
    for query, right in zip(queries, truth.tolist(), strict=True):
        similarities = [float(row @ query) for row in bank]
        order = sorted(range(len(bank)), key=lambda i: (-similarities[i], i))[:k]
        votes = defaultdict(float)
        for i in order:
            votes[int(bank_labels[i])] += math.exp(similarities[i] / temperature)
        ranked = sorted(votes, key=lambda label: (-votes[label], label))
        hits[0] += right == ranked[0]
        hits[1] += right in ranked[:5]
    return [100 * count / len(truth) for count in hits]


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 14, 1 << 30])
def test_equals_a_brute_force_for_every_k_and_chunk(features, chunk_bytes):
    bank, labels, queries, truth = (part.double() if part.is_floating_point() else part for part in features)
    scores = accuracies((bank, labels), (queries, truth), KS, TEMPERATURE, CLASSES, chunk_bytes)
    expected = [brute_force(bank, labels, queries, truth, k, TEMPERATURE) for k in KS]
    assert scores.tolist() == pytest.approx(np.array(expected))
    assert len({tuple(row) for row in expected}) > 1  # k matters here


def test_chunks_and_processes_leave_the_scores_of_float32(monkeypatch):
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 64, generator=random)
    labels, truth = (torch.randint(0, CLASSES, (count,), generator=random) for count in (3000, 500))
    rows = [normalise_rows(centres[n] + 3 * torch.randn(len(n), 64, generator=random)) for n in (labels, truth)]

    def scores(chunk_bytes: int, processes: int = 1) -> list[list[float]]:
        worlds = [World(rank, rank, processes) for rank in range(processes)]
        rule = (rows[0], labels), (rows[1], truth), KS, TEMPERATURE, CLASSES, chunk_bytes
        return sum(accuracies(*rule, world=world) for world in worlds).tolist()

    monkeypatch.setattr(knn, "add_up", lambda tensors, world: None)  # each has its part, and here they are summed
    expected = scores(1 << 30)
    assert 30 < expected[-1][0] < 90
    for chunk_bytes in (1 << 12, 1 << 16, 1 << 20):
        assert scores(chunk_bytes) == expected
    for processes in (2, 3, 40):  # 40: more than there are chunks
        assert scores(1 << 20, processes) == [pytest.approx(row) for row in expected]


@pytest.mark.gpu
def test_cuda_equals_the_cpu(features):
    bank, labels, queries, truth = (part.double() if part.is_floating_point() else part for part in features)
    settings = (KS, TEMPERATURE, CLASSES, 1 << 14)
    scores = accuracies((bank.cuda(), labels.cuda()), (queries.cuda(), truth.cuda()), *settings)
    assert torch.equal(scores, accuracies((bank, labels), (queries, truth), *settings))


def test_equals_scikit_learn():
    random = np.random.default_rng(0)
    centres = random.normal(size=(CLASSES, 16))
    labels, truth = random.integers(0, CLASSES, 400), random.integers(0, CLASSES, 150)
    bank, queries = (centres[n] + 1.2 * random.normal(size=(len(n), 16)) for n in (labels, truth))
    tensors = [normalise_rows(torch.tensor(rows)) for rows in (bank, queries)]
    known, asked = (tensors[0], torch.tensor(labels)), (tensors[1], torch.tensor(truth))
    scores = accuracies(known, asked, [5, 20], TEMPERATURE, CLASSES, 1 << 20)
    for k, (top1, _) in zip([5, 20], scores.tolist(), strict=True):
        reference = KNeighborsClassifier(
            k, weights=lambda distance: np.exp((1 - distance) / TEMPERATURE), metric="cosine"
        )
        assert top1 == pytest.approx(100 * reference.fit(bank, labels).score(queries, truth))
        assert 30 < top1 < 100


def test_of_equal_neighbours_the_first_is_nearer():
    product = torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2], [1.0, 2.0, 3.0, 4.0, 5.0]])
    assert _largest(product, 3).tolist() == [[0, 1, 2], [0, 1, 2], [2, 3, 4]]
    bank = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    for columns in (1, 2, 3, 4):
        assert nearest(torch.tensor([[0.6, 0.8]]), bank, 3, columns)[1].tolist() == [[0, 2, 3]]


def test_of_equal_votes_the_lower_class_wins_and_no_vote_is_no_guess():
    similarity = torch.tensor([[0.5, 0.5, 0.2]])
    assert ranked_classes(similarity, torch.tensor([[4, 2, 4]]), 0.07, 6).tolist() == [[4, 2, -1, -1, -1]]
    assert ranked_classes(similarity[:, :2], torch.tensor([[4, 2]]), 0.07, 6)[0, :2].tolist() == [2, 4]
    # As low as the config allows; exp(similarity / temperature) itself would be infinite.
    lowest = ranked_classes(torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.tensor([[1, 0]]), 0.005, 2)
    assert lowest.tolist() == [[1, 0]]


def test_command(image_folder, parent, evaluate):
    """Scored again from the parent's features by the brute force; k is the held-out slice's."""
    data = ["data.name=imagefolder", f"data.root={image_folder}", *SMALL]
    code, error, run = evaluate(knn.main, parent, CONFIG, *data)
    assert code == 0, error
    result = run.result()
    assert (result["protocol"], result["train_images"], result["val_images"]) == ("knn", 48, 16)
    assert (result["held_out_images"], result["features"], result["classes"]) == (8, 128, 4)
    chosen = result["held_out_top1_each"].index(max(result["held_out_top1_each"]))
    assert (result["k"], result["top1"]) == (result["neighbours"][chosen], result["val_top1_each"][chosen])
    config = configs.load(KnnConfig, CONFIG, [*data, "k=3"])
    dataset = open_dataset(config.data)
    extract = PooledFeatures(load_parent_backbone(open_parent(parent)), torch.device("cpu"))
    tables = []
    for split in ("train", "val"):
        images = LabelledDataset(dataset.images(split), eval_transform(16, 16))
        vectors, labels = extract.table(ImageBatches(images, 5), 0, lambda done: None)
        tables += [normalise_rows(vectors), labels]
    for k, score in zip(result["neighbours"], result["val_top1_each"], strict=True):
        assert score == pytest.approx(brute_force(*tables, k, 0.07)[0], abs=100 / 16)  # a tie may fall otherwise

    # A study plans the very run that the command made.
    stage = get_stage("knn", "here")
    assert run.name == stage.identity(stage.load(CONFIG, data), SimpleNamespace(hash=open_parent(parent).hash)).name
    code, _, fixed = evaluate(knn.main, parent, CONFIG, *data, "k=3")
    again = fixed.result()
    assert (code, again["k"], again["k_chosen"], again["held_out_images"]) == (0, 3, False, 0)
    # The same bank: with the held-out images, whose order alone differs.
    assert again["val_top1_each"] == pytest.approx(result["val_top1_each"], abs=100 / 16)


def test_scenes_choose_k_by_unseen_digits_and_all_vote(scenes, parent, evaluate):
    """The images in neither part of the choice vote for the score on val, as they do with a fixed k."""
    code, error, run = evaluate(knn.main, parent, CONFIG, *scenes, "neighbours=[1,3]", "held_out=0.2")
    result = run.result()
    assert (code, result["held_out_by"], result["train_images"]) == (0, "source", 60), error
    assert 10 <= result["held_out_images"] <= 25
    _, _, fixed = evaluate(knn.main, parent, CONFIG, *scenes, "neighbours=[1,3]", "k=3")
    assert fixed.result()["val_top1_each"] == result["val_top1_each"]
    assert fixed.result()["held_out_by"] is None


def test_a_stop_between_batches_ends_with_75_and_the_run_starts_over(image_folder, parent, evaluate, monkeypatch):
    data = ["data.name=imagefolder", f"data.root={image_folder}", *SMALL, "batch_size=8"]
    extract = PooledFeatures.__call__

    def terminated(self, images):
        os.kill(os.getpid(), signal.SIGTERM)
        return extract(self, images)

    monkeypatch.setattr(PooledFeatures, "__call__", terminated)
    code, _, run = evaluate(knn.main, parent, CONFIG, *data)
    assert (code, run.result()) == (75, None)
    monkeypatch.setattr(PooledFeatures, "__call__", extract)
    code, _, run = evaluate(knn.main, parent, CONFIG, *data)
    assert (code, run.state()) == (0, "done")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("neighbours=[]", "1 or more values"),
        ("neighbours=[5,5]", "each only once"),
        ("neighbours=[0]", "1 or more"),
        ("k=7", "one of neighbours"),
        ("temperature=0", "0.005 or more"),
        ("held_out=0", "or set k"),
        ("neighbors=[5]", "did you mean neighbours"),
    ],
)
def test_impossible_values(override, words):
    with pytest.raises(UserError, match=words):
        configs.load(KnnConfig, CONFIG, [override])


def test_more_neighbours_than_images(image_folder, parent, evaluate):
    data = ["data.name=imagefolder", f"data.root={image_folder}", *SMALL, "neighbours=[3,40]"]
    code, error, run = evaluate(knn.main, parent, CONFIG, *data)
    assert (code, run.state()) == (0, "done"), error
    code, error, _ = evaluate(knn.main, parent, CONFIG, *data, "neighbours=[3,41]")
    assert (code, "40 training images can vote" in error) == (2, True), error


@pytest.mark.parametrize("name", ["scenes", "imagenet"])
def test_configs_are_whole(name):
    config = configs.load(KnnConfig, f"eval/configs/knn_{name}.yaml")
    assert (config.data.name, config.temperature) == (name, 0.07)
