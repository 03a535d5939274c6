"""A package of the user's own registers what a config names, and its version is part of the run's identity."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data import catalog
from data.catalog import open_dataset
from data.config import DATASETS
from pretrain.config import PretrainConfig, identity
from runtime import config as configs
from runtime import imports
from runtime.errors import UserError
from vicregl.backbones import create_backbone

SOURCE = """
from timm.models import create_model, register_model
from data.catalog import Dataset, read_folders, register, root_of

def open_own(config):
    return Dataset("own_images", root_of(config), [], lambda split: read_folders(root_of(config), split, []))

@register_model
def own_resnet(pretrained=False, **kwargs):
    return create_model("resnet18", pretrained, **kwargs)

register("own_images", open_own)
"""
OVERRIDES = ["imports=[own_package]", "data.name=own_images", "data.root=.", "model.backbone.name=own_resnet"]
Write = Callable[[str], None]
pytestmark = pytest.mark.filterwarnings("ignore:Overwriting own_resnet")  # each test registers it anew


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write the package's source as a new process would meet it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def forget() -> None:
        imports._import_package.cache_clear()
        sys.modules.pop("own_package", None)
        catalog._OPENERS.pop("own_images", None)

    def write(source: str) -> None:
        forget()
        (tmp_path / "own_package.py").write_text(source, encoding="utf-8")

    yield write
    forget()
    if "own_images" in DATASETS:
        DATASETS.remove("own_images")


def test_a_config_of_an_own_dataset_and_network(write: Write, tmp_path: Path) -> None:
    write(SOURCE)
    config = configs.load(PretrainConfig, None, OVERRIDES)
    assert open_dataset(config.data).name == "own_images"
    assert create_backbone(config.model.backbone).channels == 512
    first = identity(config)
    (version,) = first.config["imports"].values()
    assert version.startswith("sha256:")
    stored = tmp_path / "resolved.yaml"  # as a job reads it
    stored.write_text(configs.as_yaml(config), encoding="utf-8")
    assert identity(configs.load(PretrainConfig, stored)).hash == first.hash
    write(f"{SOURCE}\n# other code\n")
    assert identity(configs.load(PretrainConfig, None, OVERRIDES)).hash != first.hash
    with pytest.raises(UserError, match=f"own_package = '{version}', and the package here is sha256:"):
        configs.load(PretrainConfig, stored)


def test_an_installed_package_has_its_version_and_none_changes_nothing() -> None:
    config = configs.load(PretrainConfig, None, ["imports=[yaml]"])
    assert config.imports == {"yaml": imports.metadata.version("PyYAML")}
    assert "imports" not in identity(PretrainConfig()).config


@pytest.mark.parametrize(
    ("source", "override", "expected"),
    [
        ("", "imports=[no_such_package]", "no_such_package cannot be imported: ModuleNotFoundError"),
        ("1 / 0", "imports=[own_package]", "own_package cannot be imported: ZeroDivisionError"),
        ("", "imports=own_package", "a list of packages, as [my_package]"),
        ("", "data.name=own_image", "data.name = 'own_image' is not possible; allowed: scenes, imagefolder"),
        (SOURCE.replace("own_images", "scenes"), "imports=[own_package]", "dataset 'scenes' is registered already"),
    ],
)
def test_an_error_is_named(write: Write, source: str, override: str, expected: str) -> None:
    write(source)
    with pytest.raises(UserError) as caught:
        configs.load(PretrainConfig, None, [override])
    assert expected in str(caught.value)
