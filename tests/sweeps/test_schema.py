"""The schemas are those of the code, and every YAML file names the one that it fits."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from runtime import PROJECT
from runtime.yaml_files import read_yaml
from sweeps import schema, stages

STAGE_OF = {
    "finetune": "linear",
    "seg": "segmentation",
    "dense": "dense_knn",
}  # by the first word of an evaluation's config, where it differs
FILES = [
    p for folder in ("pretrain/configs", "eval/configs", "sweeps/studies") for p in (PROJECT / folder).rglob("*.yaml")
]


def name_of(file: Path) -> str:
    word = file.stem.partition("_")[0]
    return {"pretrain": "pretrain", "sweeps": "study"}.get(file.relative_to(PROJECT).parts[0], STAGE_OF.get(word, word))


def test_the_committed_schemas_are_those_of_the_code() -> None:
    made = schema.schemas()
    assert made.keys() == {"study", *(name for name, stage in stages.STAGES.items() if stage.config_class)}
    assert {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in schema.FOLDER.iterdir()} == made


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_yaml_file_names_its_schema_and_fits_it(file: Path) -> None:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named
    target = (file.parent / named[1]).resolve()
    assert target == schema.FOLDER / f"{name_of(file)}.json"
    jsonschema.validate(read_yaml(file), json.loads(target.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("pretrain", {"train": {"batch_size": 1}}),
        ("pretrain", {"optimizer": {"name": "sdg"}}),
        ("pretrain", {"optimzer": {}}),
        ("study", {"pretrain": {"grid": {"loss.alhpa": [1.0]}}}),
        ("study", {"pretrain": {"set": {"machine.workers": 2}}}),
        ("study", {"evals": {"linear": {"stge": "linear"}}}),
    ],
)
def test_what_the_code_refuses_the_schema_refuses(name: str, values: dict) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, schema.schemas()[name])


def test_keys_inside_sections_and_open_mappings_are_allowed() -> None:
    grid = {"model.backbone.args.depth": [2, 3], "model.backbone": [{"name": "resnet18"}], "loss.alpha": [0.5]}
    jsonschema.validate({"pretrain": {"grid": grid}}, schema.schemas()["study"])
