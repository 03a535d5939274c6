"""k heads trained side by side are k separate trainings; accuracy and split against brute force."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from eval.features import shuffled
from eval.linear import set_rates
from eval.linear_heads import LinearHeads
from eval.splits import source_split, stratified_split
from runtime.errors import UserError


def problem(count=300, features=20, classes=7):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (count,), generator=generator)


def test_heads_equal_separate_runs():
    x, y = problem()
    rates, epochs = [0.01, 0.1, 1.0], 5
    together = LinearHeads(20, 7, len(rates), seed=3).double()
    start = together.weights[0].detach().clone()
    optimizer = torch.optim.SGD(together.parameter_groups(rates), momentum=0.9, weight_decay=1e-3)
    for epoch in range(epochs):
        set_rates(optimizer, epoch, epochs)
        for chosen in torch.tensor(shuffled(300, 3, epoch)).split(64):
            optimizer.zero_grad()
            together.losses(x[chosen], y[chosen]).sum().backward()
            optimizer.step()
    for number, rate in enumerate(rates):
        alone = nn.Linear(20, 7).double()
        with torch.no_grad():
            alone.weight.copy_(start)
            alone.bias.zero_()
        sgd = torch.optim.SGD(alone.parameters(), lr=rate, momentum=0.9, weight_decay=1e-3)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=epochs)
        for epoch in range(epochs):
            for chosen in torch.tensor(shuffled(300, 3, epoch)).split(64):
                sgd.zero_grad()
                nn.functional.cross_entropy(alone(x[chosen]), y[chosen]).backward()
                sgd.step()
            cosine.step()
        torch.testing.assert_close(together.weights[number], alone.weight, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(together.biases[number], alone.bias, rtol=1e-10, atol=1e-12)


def test_start_is_normal_with_deviation_a_hundredth_and_the_same_for_all():
    heads = LinearHeads(2048, 100, 3, seed=0)
    weight = heads.weights[0].detach()
    assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(weight.mean().item()) < 1e-4
    assert all(torch.equal(weight, other) for other in heads.weights)
    assert not any(bias.any() for bias in heads.biases)


@pytest.mark.parametrize("batch_size", [1, 64, 8192])
def test_accuracy_equals_a_loop(batch_size):
    x, y = problem()
    heads = LinearHeads(20, 7, 2, seed=0).double()
    with torch.no_grad():
        heads.weights[1].normal_()
    accuracy = heads.accuracy(x, y, batch_size)
    for number in range(2):
        scores = (x @ heads.weights[number].T + heads.biases[number]).detach().numpy()
        ranks = [list(np.argsort(-row)).index(label) for row, label in zip(scores, y.tolist(), strict=True)]
        assert accuracy[number].tolist() == pytest.approx([100 * np.mean([r < k for r in ranks]) for k in (1, 5)])


def test_a_head_that_diverged_scores_nan_and_leaves_the_others_alone():
    x, y = problem()
    heads = LinearHeads(20, 7, 2, seed=0).double()
    optimizer = torch.optim.SGD(heads.parameter_groups([0.1, 0.1]))
    with torch.no_grad():
        heads.weights[1][0, 0] = math.inf
    heads.losses(x, y).sum().backward()
    optimizer.step()
    assert torch.isfinite(heads.weights[0]).all()
    accuracy = heads.accuracy(x, y)
    assert torch.isfinite(accuracy[0]).all()
    assert torch.isnan(accuracy[1]).all()


def test_split_is_stratified_disjoint_and_deterministic():
    labels = [0] * 50 + [1] * 30 + [2] * 3
    kept, held_out = stratified_split(labels, 0.1, seed=1)
    assert sorted(kept + held_out) == list(range(83))
    assert [sum(labels[i] == label for i in held_out) for label in range(3)] == [5, 3, 1]
    assert stratified_split(labels, 0.1, seed=1) == (kept, held_out)
    assert stratified_split(labels, 0.1, seed=2) != (kept, held_out)


def test_split_of_nothing_keeps_all():
    assert stratified_split([0, 1, 0], 0.0, seed=0) == ([0, 1, 2], [])


def test_split_that_empties_a_class_is_refused():
    with pytest.raises(UserError, match="class number 1 has 1 training images"):
        stratified_split([0, 0, 0, 1], 0.5, seed=0)


def test_split_by_source_by_hand():
    """Class 0 has the sources 1 and 2, class 1 the sources 5 and 6; one of each is held out."""
    sources = [(1,), (2,), (1, 5), (2, 6), (5,), (6,), (5, 2), (6, 1), (1, 6)]
    labels = [0, 0, 0, 0, 1, 1, 1, 1, 0]
    seen = set()
    for seed in range(20):
        kept, held_out = source_split(labels, sources, 0.4, seed)
        chosen = {sources[number][0] for number in held_out}
        assert len(chosen & {1, 2}) == len(chosen & {5, 6}) == 1
        assert held_out == [number for number, image in enumerate(sources) if image[0] in chosen]
        assert kept == [number for number, image in enumerate(sources) if not chosen & set(image)]
        assert source_split(labels, sources, 0.4, seed) == (kept, held_out)
        seen.add(tuple(held_out))
    assert len(seen) == 4


def test_split_by_source_that_empties_a_class_is_refused():
    with pytest.raises(UserError, match="class number 1 has no training image without a source digit"):
        source_split([0, 0, 1, 1], [(1,), (2,), (5,), (5, 1)], 0.5, seed=0)


def test_order_is_a_permutation_that_changes_with_the_epoch():
    assert sorted(shuffled(10, 0, 0)) == list(range(10))
    assert shuffled(100, 0, 0) != shuffled(100, 0, 1)
    assert shuffled(100, 0, 1) != shuffled(100, 1, 1)
