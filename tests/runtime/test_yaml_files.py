"""YAML files and overrides: numbers, keys, `base:`, and what hostile text does."""

from pathlib import Path

import pytest
import yaml

from runtime import PROJECT, yaml_files
from runtime import config as configs
from runtime.config import Config
from runtime.errors import UserError
from runtime.rundir import Run
from runtime.yaml_files import file_layers, parse_dumped, parse_overrides, parse_yaml


class Inner(Config):
    rate: float = 0.5


class Outer(Config):
    inner: Inner = Inner()
    steps: int = 3


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("1E5", 1e5), ("-.5e+3", -500.0), ("2", 2), ("0.5", 0.5), ("e5", "e5"), ("16:00", "16:00")],
)
def test_numbers_are_read_as_numbers(text, value):
    """PyYAML alone reads 1e-6, as YAML 1.1 does, as text, and 16:00 as 960."""
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize("text", ["steps: 1\nsteps: 2\n", "inner: {rate: 0.1, rate: 0.2}\n", "1: a\n"])
def test_a_key_that_stands_twice_or_is_no_text_is_refused(tmp_path, text):
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"twice\.yaml.*(appears twice|is not text)"):
        configs.load(Outer, path)


ALIASES = "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}' if k else 'x'] * 9)}]\n" for k in range(30))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ALIASES, "aliases"),
        ("steps: &here [*here]\n", "aliases"),
        ("inner: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("steps: " + "9" * 5000, "digits"),
        ("steps: 2001-13-45", "month"),
    ],
    ids=["bomb", "circle", "nesting", "digits", "date"],
)
def test_hostile_yaml_ends_at_once_in_one_line(tmp_path, text, problem):
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"hostile\.yaml is not readable YAML.*{problem}"):
        configs.load(Outer, path)
    if text != ALIASES:
        with pytest.raises(UserError, match=problem):
            parse_overrides([f"inner={text.partition(': ')[2]}"])


def test_a_huge_number_in_hexadecimal_is_no_traceback():
    with pytest.raises(UserError):
        configs.load(Outer, None, [f"steps=0x{'f' * 5000}"])


class CountingKey(str):
    compared = 0

    def __eq__(self, other):
        CountingKey.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


class CountingLoader(yaml_files._Loader):
    pass


CountingLoader.add_constructor("tag:yaml.org,2002:str", lambda loader, node: CountingKey(node.value))


def test_a_repeated_key_is_looked_for_without_comparing_every_two_keys():
    text = "".join(f"k{n}: 1\n" for n in range(1000))
    assert len(yaml.load(text, CountingLoader)) == 1000
    assert CountingKey.compared < 1000


@pytest.mark.parametrize("base", ["it.yaml", "3", "[a]"])
def test_a_base_that_leads_in_a_circle_or_is_no_name_is_one_line(base, tmp_path):
    (tmp_path / "it.yaml").write_text(f"base: {base}\n")
    with pytest.raises(UserError, match=r"it.yaml: base: .* expected another config file"):
        configs.load(Outer, tmp_path / "it.yaml")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
HOSTILE = {
    "bomb": (BOMB, "stand for more than 100,000 values"),
    "endless": ("a: &a [*a]", "stand for more than"),
    "deep": ("a: " + "[" * 20_000, "nested too deeply"),
    "long number": (f"a: {'9' * 5000}", "digits"),
    "no date": ("a: 2001-99-99", "month must be"),
}


@pytest.mark.parametrize("comment", ["", "\n# " + "[" * 5000], ids=["by libyaml", "by Python"])
@pytest.mark.parametrize("kind", ["bomb", "endless", "long number", "no date"])
def test_hostile_yaml_is_a_yaml_error_at_once(kind, comment):
    text, message = HOSTILE[kind]
    with pytest.raises(yaml.YAMLError, match=message):
        parse_dumped(text + comment)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_run_yaml_of_hostile_values_is_damaged(kind, tmp_path):
    text, message = HOSTILE[kind]
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=f"run.yaml is damaged: .*{message}"):
        Run(tmp_path).document()


@pytest.mark.parametrize("mark", ["[", "- ", "? ", "{a: "])
def test_attempts_that_are_nested_deeply_do_not_crash_the_process(mark, tmp_path):
    (tmp_path / "run.yaml").write_text("attempts:\n" + mark * 60_000)
    assert Run(tmp_path).attempts() == []


def test_aliases_as_safe_dump_writes_them_and_large_files_pass():
    shared = [1, 2]
    assert parse_dumped(yaml.safe_dump({"a": shared, "b": shared})) == {"a": shared, "b": shared}
    assert len(parse_dumped("".join(f"k{n}: 1\n" for n in range(60_000)))) == 60_000
    assert parse_dumped("") is None


def test_a_base_is_relative_to_its_file_or_one_of_the_checkout(tmp_path):
    (tmp_path / "other.yaml").write_text("a: 1\n")
    for base, first in (("other.yaml", tmp_path / "other.yaml"), ("sweeps/studies/alpha.yaml", None)):
        (tmp_path / "it.yaml").write_text(f"base: {base}\n")
        origins = [Path(origin) for origin, _ in file_layers(tmp_path / "it.yaml")]
        assert (first or PROJECT / base) in origins
        assert origins[-1] == tmp_path / "it.yaml"
    (tmp_path / "it.yaml").write_text("base: othr.yaml\n")
    with pytest.raises(UserError, match=r"othr.yaml does not exist; near it: other.yaml, it.yaml; expected a file"):
        file_layers(tmp_path / "it.yaml")
