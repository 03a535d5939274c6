"""Every option against the brute-force twin, values and gradients, in float64."""

import itertools
import warnings

import pytest
import torch
from criterion_cases import assert_same, fast, losses_and_gradients, random_inputs, slow
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import UserError
from vicregl.criterion import CriterionConfig, VICRegLCriterion
from vicregl.matching import regrid

pytestmark = pytest.mark.filterwarnings("ignore:.*matches were asked for")
TOLERANCE = 1e-9

LOCAL = ("none", "location", "feature", "both")
THRESHOLDS = {"location_threshold": 20.0, "feature_threshold": 0.9}  # some of random_inputs' pairs are nearer
OPTIONS = [
    {"local": local, "profile": profile, "select": select, "statistics": statistics, **THRESHOLDS}
    for local, profile, select, statistics in itertools.product(
        LOCAL, ("paper", "reference"), ("top", "threshold"), ("matches", "maps")
    )
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in list(o.values())[:4]))
@pytest.mark.parametrize(("batch", "channels"), [(4, 6), (7, 5)], ids=["gram", "moments"])
def test_every_combination(options, batch, channels) -> None:
    inputs = random_inputs(batch, width=6, channels=channels, positions=[6, 6, 4])
    options = options | {"num_matches": (3, 2)}
    assert_same(losses_and_gradients(fast(**options), inputs), losses_and_gradients(slow(**options), inputs), TOLERANCE)


@pytest.mark.parametrize("feature_matches", [None, (0, 0), (2, 1), (0, 3), (99, 99)])
@pytest.mark.parametrize("profile", ["paper", "reference"])
def test_feature_matches(feature_matches, profile) -> None:
    inputs = random_inputs(4, 3, 5, [6, 6, 4])
    options = {"feature_matches": feature_matches, "profile": profile, "num_matches": (4, 2)}
    assert_same(losses_and_gradients(fast(**options), inputs), losses_and_gradients(slow(**options), inputs), TOLERANCE)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(2, 7),
    width=st.integers(1, 8),
    channels=st.integers(1, 8),
    positions=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    matches=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    feature_matches=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
    alpha=st.sampled_from([0.0, 0.25, 1.0]),
    local=st.sampled_from(LOCAL[1:]),
    profile=st.sampled_from(["paper", "reference"]),
    select=st.sampled_from(["top", "threshold"]),
    statistics=st.sampled_from(["matches", "maps"]),
    seed=st.integers(0, 99),
)
def test_any_sizes(batch, width, channels, positions, matches, feature_matches, seed, **options) -> None:
    """Unequal numbers of positions, one position, one dimension, more matches than positions ..."""
    inputs = random_inputs(batch, width, channels, positions, seed)
    options |= {"num_matches": matches, "feature_matches": feature_matches, **THRESHOLDS}
    assert_same(losses_and_gradients(fast(**options), inputs), losses_and_gradients(slow(**options), inputs), TOLERANCE)


def test_every_term_has_its_gradient() -> None:
    """One coefficient at a time, in each half of the loss."""
    inputs = random_inputs(5, 4, 6, [4, 4, 3])
    for alpha, kept in itertools.product((0.0, 1.0), ("invariance", "variance", "covariance")):
        coefficients = {f"{t}_coefficient": 3.0 * (t == kept) for t in ("invariance", "variance", "covariance")}
        options = {"alpha": alpha, "num_matches": (3, 2), **coefficients}
        actual = losses_and_gradients(fast(**options), inputs)
        assert_same(actual, losses_and_gradients(slow(**options), inputs), TOLERANCE)
        assert actual[0]["loss"] > 0


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_unused_half_is_not_looked_at(alpha) -> None:
    embeddings, maps, locations = random_inputs(4, 3, 5, [4, 4])
    losses = fast(alpha=alpha)(*((embeddings, None, None) if alpha else (None, maps, locations)))
    expected = slow(alpha=alpha)(embeddings, maps, locations)
    assert set(losses) == set(expected)
    for name, value in losses.items():
        assert float(value.detach()) == pytest.approx(float(expected[name].detach()), rel=1e-9)
    unused = "local" if alpha else "global"
    assert all(float(losses[f"{unused}_{term}"]) == 0 for term in ("invariance", "variance", "covariance"))


def test_feature_matching_needs_no_locations() -> None:
    embeddings, maps, locations = random_inputs(4, 3, 5, [4, 4])
    with_them = fast(local="feature")(embeddings, maps, locations)["loss"]
    assert float(with_them.detach()) == float(fast(local="feature")(embeddings, maps, [])["loss"].detach())


def test_grids_may_come_with_their_sides() -> None:
    embeddings, maps, locations = random_inputs(4, 3, 5, [6, 6])
    expected = fast()(embeddings, maps, locations)["loss"].detach()
    sides = [grid.view(4, 2, 3, 2) for grid in locations]
    assert torch.equal(fast()(embeddings, maps, sides)["loss"].detach(), expected)
    leaves = [m.detach().view(4, 2, 3, 5).requires_grad_() for m in maps]
    loss = fast()(embeddings, leaves, sides)["loss"]
    loss.backward()
    assert torch.equal(loss.detach(), expected)
    assert all(leaf.grad.shape == leaf.shape for leaf in leaves)


def test_maps_may_be_transposed_views() -> None:
    """As (B, C, P) of a convolution is, before any layer works on its positions."""
    embeddings, maps, locations = random_inputs(4, 3, 5, [6, 6, 4])
    transposed = [m.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for m in maps]
    plain = [m.detach().clone().requires_grad_() for m in maps]
    losses = []
    for leaves in (transposed, plain):
        loss = fast(num_matches=(3, 2))(embeddings, leaves, locations)["loss"]
        loss.backward()
        losses.append(loss.detach())
    assert losses[0] == losses[1]
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(transposed, plain, strict=True))


def test_several_stages_are_a_weighted_sum() -> None:
    embeddings, deep, _ = random_inputs(4, 3, 5, [4, 4], seed=1)
    _, shallow, _ = random_inputs(4, 3, 7, [16, 16], seed=2)
    grids = [crop_grid(4, 2, 2, seed) for seed in (0, 1)]
    fine = [crop_grid(4, 4, 4, seed) for seed in (0, 1)]
    deep, shallow = [m.unflatten(1, (2, 2)) for m in deep], [m.unflatten(1, (4, 4)) for m in shallow]
    options = {"num_matches": (3, 3)}
    actual = fast(**options, local_stage_weights=(0.5, 2.0))(embeddings, [shallow, deep], grids)
    of_shallow = slow(**options)(embeddings, [m.flatten(1, 2) for m in shallow], [g.flatten(1, 2) for g in fine])
    of_deep = slow(**options)(embeddings, [m.flatten(1, 2) for m in deep], [g.flatten(1, 2) for g in grids])
    for term in ("invariance", "variance", "covariance"):
        expected = 0.5 * of_shallow[f"local_{term}"] + 2.0 * of_deep[f"local_{term}"]
        torch.testing.assert_close(actual[f"local_{term}"], expected.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(actual[f"global_{term}"], of_deep[f"global_{term}"].detach(), rtol=1e-9, atol=0)
    leaves = [*embeddings, *shallow, *deep]
    expected = 0.75 * sum(of_deep[f"global_{t}"] for t in ("invariance", "variance", "covariance"))
    for weight, terms in ((0.5, of_shallow), (2.0, of_deep)):
        expected = expected + 0.25 * weight * sum(terms[f"local_{t}"] for t in ("invariance", "variance", "covariance"))
    pairs = zip(torch.autograd.grad(actual["loss"], leaves), torch.autograd.grad(expected, leaves), strict=True)
    for grad, expected_grad in pairs:
        torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-12)
    mean = fast(**options)(embeddings, [shallow, deep], grids)["local_invariance"]
    torch.testing.assert_close(mean, (of_shallow["local_invariance"] + of_deep["local_invariance"]).detach() / 2)


def crop_grid(batch: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Cell centres (B, H, W, 2) of random crops, every other one mirrored."""
    random = torch.Generator().manual_seed(seed)
    top, left = (torch.rand(2, batch, generator=random, dtype=torch.float64) * 50).unbind()
    tall, wide = (20 + torch.rand(2, batch, generator=random, dtype=torch.float64) * 50).unbind()
    rows = top[:, None] + tall[:, None] * (torch.arange(height) + 0.5) / height
    columns = left[:, None] + wide[:, None] * (torch.arange(width) + 0.5) / width
    columns[::2] = columns[::2].flip(1)
    return torch.stack([rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)], dim=3)


@pytest.mark.parametrize("size", [(2, 2), (7, 5), (1, 1), (14, 3)])
def test_regrid(size) -> None:
    torch.testing.assert_close(regrid(crop_grid(4, 7, 5, 0), *size), crop_grid(4, *size, 0))


def test_regrid_needs_two_cells() -> None:
    assert torch.equal(regrid(crop_grid(2, 1, 3, 0), 1, 3), crop_grid(2, 1, 3, 0))
    with pytest.raises(UserError, match="grid of 1 cell"):
        regrid(crop_grid(2, 1, 3, 0), 2, 3)


def test_one_warning_where_matches_are_clamped() -> None:
    criterion, inputs = VICRegLCriterion(num_matches=(20, 4)), random_inputs(4, 3, 5, [6, 6])
    with pytest.warns(UserWarning, match=r"20 .* matches were asked for.* view 0 has 6 positions"):
        criterion(*inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(*inputs)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": 0.0, "local": "none"}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"local": "global"}, "local"),
        ({"profile": "code"}, "profile"),
        ({"num_matches": (0, 4)}, "num_matches"),
        ({"num_matches": (20,)}, "num_matches"),
        ({"feature_matches": (-1, 4)}, "feature_matches"),
        ({"select": "bottom"}, "select"),
        ({"statistics": "all"}, "statistics"),
        ({"location_threshold": 0.0}, "location_threshold"),
        ({"feature_threshold": -1.0}, "feature_threshold"),
        ({"covariance_coefficient": -1.0}, "covariance_coefficient"),
        ({"local_stage_weights": (1.0, -1.0)}, "local_stage_weights"),
    ],
)
def test_impossible_options(options, key) -> None:
    with pytest.raises(UserError, match=f"^{key} = "):
        VICRegLCriterion(**options)
    with pytest.raises(UserError, match=f"^{key} = "):
        CriterionConfig(**{k: list(v) if isinstance(v, tuple) else v for k, v in options.items()})


def test_config_and_keywords_are_the_same() -> None:
    assert VICRegLCriterion(CriterionConfig(alpha=0.5)).options == VICRegLCriterion(alpha=0.5).options
    assert VICRegLCriterion().options == CriterionConfig()
    assert CriterionConfig(local="none").global_weight == 1
    assert CriterionConfig(alpha=0.5).global_weight == 0.5


def changed_inputs(embeddings=lambda z: z, maps=lambda m: m, locations=lambda g: g):
    inputs = random_inputs(4, 3, 5, [4, 4])
    return embeddings(inputs[0]), maps(inputs[1]), locations(inputs[2])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (changed_inputs(embeddings=lambda z: z[:1]), "got 1 views"),
        (changed_inputs(embeddings=lambda z: [z[0], z[1][:, :2]]), r"got shapes \[\(4, 3\), \(4, 2\)\]"),
        (changed_inputs(maps=lambda m: []), "needs the maps"),
        (changed_inputs(maps=lambda m: [m[0], m[1][:2]]), r"got shapes \[\(4, 4, 5\), \(2, 4, 5\)\]"),
        (changed_inputs(embeddings=lambda z: [x[:2] for x in z]), r"batches of \[2, 4\]"),
        (changed_inputs(locations=lambda g: g[:1]), "locations of 1 views and the maps of 2"),
        (changed_inputs(locations=lambda g: [g[0], g[1][:, :3]]), r"view 1: locations \(4, 3, 2\) do not belong"),
        (changed_inputs(locations=lambda g: [x[0] for x in g]), r"view 0: locations \(4, 2\) do not belong"),
    ],
)
def test_tensors_that_do_not_belong_together(inputs, message) -> None:
    with pytest.raises(UserError, match=message):
        VICRegLCriterion(num_matches=(2, 2))(*inputs)


def test_a_batch_of_one() -> None:
    with pytest.raises(UserError, match="batch of 1"):
        VICRegLCriterion(num_matches=(2, 2))(*random_inputs(1, 3, 5, [4, 4]))


def test_weights_for_stages_that_are_not_there() -> None:
    with pytest.raises(UserError, match=r"has 2 weights.* from 1 stages"):
        VICRegLCriterion(num_matches=(2, 2), local_stage_weights=(1.0, 1.0))(*random_inputs(4, 3, 5, [4, 4]))


CHANGES = {  # a second value of each option
    "local": "feature",
    "num_matches": (2, 1),
    "feature_matches": (1, 3),
    "profile": "reference",
    "select": "threshold",
    "location_threshold": 35.0,
    "feature_threshold": 1.3,
    "statistics": "maps",
}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in list(o.values())[:4]))
def test_the_loss_depends_on_the_options_that_are_used_and_on_no_others(options, alpha) -> None:
    if options["local"] == "none" and alpha == 0:
        return  # refused: no loss is left
    for feature_matches in (None, (4, 2)):
        inputs = random_inputs(6, width=6, channels=5, positions=[6, 6, 4])
        config = CriterionConfig(**options, alpha=alpha, num_matches=(3, 2), feature_matches=feature_matches)
        losses, gradients = losses_and_gradients(VICRegLCriterion(config), inputs)
        found = losses_and_gradients(VICRegLCriterion(config.without_unused()), inputs)
        assert_same(found, (losses, gradients), 0)
        for name, value in CHANGES.items():
            if value == getattr(config, name):
                continue
            other = VICRegLCriterion(config, **{name: value})(*inputs)["loss"]
            assert (other == losses["loss"]).item() == (name in config.unused), name
