"""What is read quickly is what OmegaConf reads: the same configs, the same names of runs, the same refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from runtime.config import to_dict
from runtime.errors import UserError
from runtime.plain import NotPlainError, plain_fields
from runtime.provenance import PROJECT
from sweeps import stages
from sweeps.graph import as_override, build
from sweeps.study import load_study
from sweeps.variants import Variants

QUICKSTART = PROJECT / "pretrain" / "configs" / "quickstart.yaml"
CHANGES = [
    {"loss.alpha": 0.5, "seed": 1, "loss.local": "both"},
    {"loss.alpha": 1, "seed": 2, "loss.local": "both"},  # a whole number for a float
    {"loss.alpha": 0.25, "seed": 2, "loss.local": "feature"},
    {"loss.alpha": 0.75, "seed": 2, "loss.local": "feature"},
    {"loss.alpha": 0.5, "seed": 3},  # other keys: what the first set must not stay
    {"loss.alpha": 1e-05, "seed": 4},
    {"train.duration": "0 steps", "seed": 1},
    {"train.duration": "0 steps", "seed": 2},
    {"views.large_scale": [0.2, 1.0], "seed": 2, "views.flip": True},
    {"views.large_scale": [0.2, 1.0], "seed": 3, "views.flip": False},
    {"model.backbone.args": {"depth": 2}, "seed": 3},
    {"model.backbone.args.depth": 2, "seed": 3},
    {"model.backbone.args.depth": 3, "seed": 4},
]


def test_the_configs_are_those_that_are_loaded_one_by_one() -> None:
    stage = stages.STAGES["pretrain"]
    loads: list[Any] = []

    def load(overrides: Any) -> Any:
        loads.append(overrides)
        return stage.load(QUICKSTART, overrides)

    variants = Variants(load)
    for changes in CHANGES:
        overrides = [as_override(key, value) for key, value in changes.items()]
        quick, slow = variants.make(changes, overrides), stage.load(QUICKSTART, overrides)
        assert quick == slow, changes
        assert stage.identity(quick) == stage.identity(slow)
    assert len(loads) < len(CHANGES)


@pytest.mark.parametrize("wrong", [{"loss.alpha": 1.5}, {"seed": 0.5}, {"seed": -1}, {"seed": "many"}, {"losss": 1}])
def test_what_is_refused_alone_is_refused_after_others(wrong: dict[str, Any]) -> None:
    variants = Variants(lambda overrides: stages.STAGES["pretrain"].load(QUICKSTART, overrides))
    (key,) = wrong
    good = {"loss.alpha": 0.5, "seed": 1}.get(key)
    for value in (good, good):
        if value is not None:
            variants.make({key: value}, [as_override(key, value)])
    with pytest.raises(UserError, match=key.split(".")[-1]):
        variants.make(wrong, [as_override(key, wrong[key])])


@pytest.mark.parametrize("study", ["quickstart", "scenes", "smoke"])
def test_the_runs_of_the_projects_studies_keep_their_names(study: str) -> None:
    graph = build(load_study(PROJECT / "sweeps" / "studies" / f"{study}.yaml"))
    for node in graph.nodes:
        if node.parent is None:
            config = node.stage.load(node.config_file, node.overrides)
            values = OmegaConf.to_container(OmegaConf.structured(config))
            assert to_dict(config) == values
            assert node.identity == node.stage.identity(config)


@dataclass
class Inner:
    number: float = 0.0
    numbers: list[float] = field(default_factory=list)
    open: dict[str, Any] = field(default_factory=dict)
    maybe: float | None = None


@dataclass
class Outer:
    count: int = 0
    text: str = ""
    flag: bool = False
    inner: Inner = field(default_factory=Inner)


numbers = st.one_of(st.integers(-(2**40), 2**40), st.floats(allow_nan=False))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text("ab$.{}?", max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text("xy", min_size=1), inner, max_size=2)),
    max_leaves=4,
)
inners = st.builds(
    Inner,
    number=numbers,
    numbers=st.lists(numbers, max_size=3),
    open=st.dictionaries(st.text("xyz", min_size=1, max_size=3), anything, max_size=3),
    maybe=st.one_of(st.none(), numbers),
)


@given(st.builds(Outer, count=st.integers(), text=st.text("abc $", max_size=5), flag=st.booleans(), inner=inners))
def test_plain_values_are_those_of_omegaconf(config: Outer) -> None:
    try:
        quick = plain_fields(config)
    except NotPlainError:
        return
    slow = OmegaConf.to_container(OmegaConf.structured(config))
    assert repr(quick) == repr(slow)  # a 1 is no 1.0, and no True


@pytest.mark.parametrize(
    "config",
    [Outer(count=1.5), Outer(text=3), Outer(flag=1), Outer(text="${x}"), Outer(inner=Inner(numbers=("a",)))],  # type: ignore[arg-type]
)
def test_what_is_not_plain_is_left_to_omegaconf(config: Outer) -> None:
    with pytest.raises(NotPlainError):
        plain_fields(config)


MakeGraph = Callable[[], Any]


def test_a_mistake_in_a_grid_is_told_with_its_study(folder: Path, edit: Callable[..., Path]) -> None:
    edit(pretrain__grid={"loss.alpha": [1.0, 2.0], "seed": [0]})
    with pytest.raises(UserError, match=r"study.yaml: pretrain \(loss.alpha=2.0.*alpha"):
        build(load_study("study.yaml"))
