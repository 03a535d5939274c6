"""Configs: what passes, and what the messages of the rest say."""

from argparse import ArgumentParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from runtime import config as configs
from runtime.config import Config, Duration, DurationText, MachineConfig, require
from runtime.errors import UserError


class Inner(Config):
    rate: float = 0.5
    names: list[str] = ["a"]

    def check(self) -> None:
        require(0 <= self.rate <= 1, "inner.rate", self.rate, "0 to 1")


class Outer(Config):
    inner: Inner = Inner()
    steps: int = 3
    root: str | None = None
    machine: MachineConfig = MachineConfig()


class Opened(Config):
    open: dict[str, Any] = {}


def test_file_base_and_overrides_win_in_that_order(tmp_path):
    (tmp_path / "base.yaml").write_text("steps: 1\ninner: {rate: 0.1}\n")
    (tmp_path / "top.yaml").write_text("base: base.yaml\nsteps: 2\n")
    config = configs.load(Outer, tmp_path / "top.yaml", ["inner.names=[x,y]"])
    assert config == Outer(inner=Inner(rate=0.1, names=["x", "y"]), steps=2)


def test_an_empty_mapping_clears_what_the_file_has(tmp_path):
    (tmp_path / "file.yaml").write_text("open: {a: {b: 1}, c: 2}\n")
    for override, expected in (("open={}", {}), ("open.a={}", {"a": {}, "c": 2}), ("open={d: 3}", None)):
        config = configs.load(Opened, tmp_path / "file.yaml", [override])
        assert config.open == (expected if expected is not None else {"a": {"b": 1}, "c": 2, "d": 3})
    assert configs.load(Opened, tmp_path / "file.yaml", ["open={}", "open.e=4"]).open == {"e": 4}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("inner.rat=0.2", ["inner.rat", "inner.rate"]),
        ("stepps=4", ["stepps", "did you mean steps"]),
        ("steps=many", ["steps", "many"]),
        ("inner.rate=2", ["inner.rate", "2", "0 to 1"]),
        ("inner.names=3", ["inner.names"]),
        ("steps", ["key=value"]),
        ("--steps=3", ["key=value"]),
        ("machine.workers=-1", ["machine.workers", "-1"]),
    ],
)
def test_wrong_overrides_are_named(override, expected):
    with pytest.raises(UserError) as caught:
        configs.load(Outer, None, [override])
    assert all(part in str(caught.value) for part in expected), str(caught.value)


class Composed(Config):
    """Sections in a list, and one that may be of either class."""

    parts: list[Inner] = []
    either: Inner | Opened | None = None
    named: dict[str, Inner | Opened] = {}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("parts=[{}, {rat: 1}]", "unknown key 'parts.1.rat'; .*allowed here: parts.1.rate, parts.1.names"),
        ("parts=[{rate: high}]", "parts.0.rate = 'high' is not possible; allowed: a number"),
        ("either={rat: 1}", "unknown key 'either.rat'; .*allowed here: either.rate, either.names, either.open"),
        ("either={rate: high}", "either.rate = 'high' is not possible; allowed: a number"),
        ("named={a: {rat: 1}}", "unknown key 'named.a.rat'; .*allowed here: named.a.rate, named.a.names, named.a.open"),
    ],
)
def test_wrong_keys_are_named_in_lists_and_in_sections_of_several_classes(override, expected):
    with pytest.raises(UserError, match=f"command line: {expected}"):
        configs.load(Composed, None, [override])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00"])
def test_wrong_files_are_named(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"broken\.yaml"):
        configs.load(Outer, path)


def test_missing_file_suggests_a_near_one(tmp_path):
    (tmp_path / "quick.yaml").write_text("steps: 1\n")
    with pytest.raises(UserError, match=r"quik.yaml does not exist.*quick.yaml"):
        configs.load(Outer, tmp_path / "quik.yaml")


def test_machine_stays_out_of_the_identity():
    here, there = (configs.split_machine(Outer(machine=MachineConfig(threads=n)))[0] for n in (1, 2))
    assert configs.identity_hash(here) == configs.identity_hash(there)
    assert configs.identity_hash(here) != configs.identity_hash(configs.split_machine(Outer(steps=4))[0])


def test_identity_hash_is_fixed_for_ever():
    """A change here would orphan every run on users' disks."""
    assert configs.identity_hash("pretrain", 1, {"a": 0.5, "b": [1, None]}, None) == "b2718e7f57"


def test_a_field_added_later_leaves_former_runs_their_names():
    class Inner(Config):
        rate: float = 0.1
        shape: list[int] = configs.added_later([1, 2])

    class Grown(Config):
        steps: int = 3
        inner: Inner = Inner()
        precision: str = configs.added_later("float32")

    assert configs.split_machine(Grown())[0] == {"steps": 3, "inner": {"rate": 0.1}}
    changed = Grown(precision="float16", inner=Inner(shape=[2]))
    assert configs.split_machine(changed)[0] == {
        "steps": 3,
        "inner": {"rate": 0.1, "shape": [2]},
        "precision": "float16",
    }
    assert configs.load(Grown, None, ["inner.shape=[1,2]"]) == Grown()
    assert configs.added_defaults(Grown) == {"inner.shape": [1, 2], "precision": "float32"}


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_a_number_that_no_record_can_hold_is_refused_in_a_mapping_of_any_content(value):
    class Open(Config):
        args: dict[str, Any] = {}

    with pytest.raises(UserError, match=r"command line: args.margin = .* is not possible; allowed: finite numbers"):
        configs.load(Open, None, [f"args={{margin: {value}}}", "args.other=1"])


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", "vulkan", "cuda:x", "cuda:99999", "CPU", "cpu:1", ""])
def test_a_device_that_no_stage_can_use_is_refused_by_the_config(device):
    with pytest.raises(UserError, match=r"machine.device = .* allowed: auto, cpu, cuda or cuda:N"):
        configs.load(Outer, None, [f"machine.device='{device}'"])


@given(st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False), st.integers())
def test_values_arrive_unchanged(rate, steps):
    """They pass through JSON on their way: no digit is lost, a whole number in a field of floats becomes one."""

    class Section(Config):
        rate: float = 0.0
        steps: int = 0

    config = configs.from_layers(Section, [("test", {"rate": rate, "steps": steps})])
    assert (config.rate, config.steps) == (float(rate), steps)
    assert type(config.rate) is float


def test_a_config_cannot_be_changed_and_a_copy_is_checked():
    config = Outer()
    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 4
    assert config.inner.replace(rate=0.25).rate == 0.25
    with pytest.raises(UserError, match=r"inner\.rate = 2"):
        config.inner.replace(rate=2.0)


class Part(Config):
    duration: DurationText = "1 epoch"


class Whole(Config):
    train: Part = Part()


@pytest.mark.parametrize(
    ("text", "steps"), [("10 steps", 10), ("1 step", 1), ("2 epochs", 14), ("0.5 epochs", 4), ("0 steps", 0)]
)
def test_durations(text, steps):
    assert Duration.parse(text).steps(steps_per_epoch=7) == steps


@pytest.mark.parametrize("text", ["10", "ten steps", "-1 steps", "1.5 steps", "3 days", "", "inf steps", "nan epochs"])
def test_durations_without_a_unit_or_a_sense_are_refused(text):
    with pytest.raises(UserError, match=r"^test: train\.duration = .* allowed: a number and its unit"):
        configs.from_layers(Whole, [("test", {"train": {"duration": text}})])


@given(st.permutations(["--file=a=b", "--verb", "RUN", "--inner.rate=0.2", "steps=4", "--root=my runs"]))
def test_overrides_with_dashes_may_stand_anywhere(words):
    parser = ArgumentParser()
    parser.add_argument("--file")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("words", nargs="*")
    options = configs.parse_command(parser, words)
    assert (options.file, options.verbose) == ("a=b", True)
    plain = [word.removeprefix("--") for word in words if word not in ("--file=a=b", "--verb")]
    assert options.words == plain
