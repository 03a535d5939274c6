"""Weight files, and what reading one has to do to a backbone."""

import pytest
import torch

from runtime.errors import UserError
from vicregl.weights import load_weights


def saved(contents, path):
    torch.save(contents, path)
    return path


def error_of(backbone, path) -> str:
    before = {key: value.clone() for key, value in backbone.trunk.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(backbone, path)
    assert all(torch.equal(value, before[key]) for key, value in backbone.trunk.state_dict().items())
    return str(caught.value)


def assert_loaded(backbone, state) -> None:
    assert all(torch.equal(value, state[key]) for key, value in backbone.trunk.state_dict().items())


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


def head(name: str) -> dict:
    return {f"{name}.weight": torch.ones(3, 4), f"{name}.bias": torch.ones(3)}
