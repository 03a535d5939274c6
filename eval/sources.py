"""Networks whose weights are in no file that a user names: those of a tag of timm's, and those that a loader returns.

A loader, `my_module:function`, is imported from the working directory or the Python path and called with the row's
`arch_args`. It returns a network of timm's, or any nn.Module that

- takes images (B, 3, H, W) of any H and W, and returns a map (B, C, h, w), C the same for every size;
- has its weights in its state_dict: the function returns the same tensors each time that it is called;
- computes on the device that its images are on (the meta device too, where only shapes are computed).

An evaluation with `output_stride` passes that to the function as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn

from runtime.errors import UserError
from runtime.imports import import_module
from vicregl.backbones import Backbone
from vicregl.errors import InvalidInputError

PROBE_PIXELS = 224
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # as timm names them, the first that is there


@cache
def tag_config(tag: str) -> Any:
    """Return timm's description of the weights; UserError, with near names, if it has none of that tag."""
    known = timm.list_pretrained()
    if tag in known:
        return timm.get_pretrained_cfg(tag)
    arch = tag.partition(".")[0]
    near = [name for name in known if name.partition(".")[0] == arch] or get_close_matches(tag, known, n=5)
    hint = f"near it: {', '.join(near)}" if near else "timm.list_pretrained() lists them"
    raise UserError(f"timm has no weights {tag!r}; expected <network>.<tag>, as resnet50.a1_in1k; {hint}")


def assumed_images(tag: str) -> str:
    """Say where images are made here in another way than timm makes them for the tag's weights; empty if nowhere."""
    config = tag_config(tag)
    _, height, width = config.input_size
    crop = "" if config.crop_mode == "center" else f"crop_mode = {config.crop_mode}"
    size = "" if height == width else f"{height} x {width} pixels"
    differs = " and ".join(part for part in (crop, size) if part)
    return differs and (
        f"{tag}: timm takes images of {differs}; here the shorter side is resized and a square is cut at the centre, "
        "which gives other scores where an image is not square"
    )


def tag_file(tag: str) -> Path:
    """Return the file of the tag's weights, from timm's caches or downloaded to them. UserError if it is in neither."""
    config = tag_config(tag)
    try:
        if config.hf_hub_id is None:
            return _downloaded(config.url)
        repository, _, revision = config.hf_hub_id.partition("@")
        return _hub_file(repository, revision or None, config.hf_hub_filename)
    except (OSError, HfHubHTTPError) as error:
        reason = str(error).partition("\n")[0][:160]
        raise UserError(
            f"the weights {tag} are not in timm's cache and cannot be downloaded ({type(error).__name__}: {reason}). "
            f'On a machine with a network, `python -c "import timm; timm.create_model({tag!r}, pretrained=True)"` '
            "fills the cache ($HF_HOME, ~/.cache/huggingface if it is not set); or give the file: weights and arch"
        ) from error


def _downloaded(url: str) -> Path:
    """Return the file of an address, from torch's cache, which timm uses for it, or downloaded to it."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), progress=False)
    return file


def _hub_file(repository: str, revision: str | None, name: str | None) -> Path:
    """Return the file of a repository of the hub, from its cache or downloaded to it."""
    names = [name] if name else HUB_FILES
    for each in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, each, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    for each in names[:-1]:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, each, revision=revision))
        except LocalEntryNotFoundError:  # no network: another name would not help
            raise
        except EntryNotFoundError:
            continue
    return Path(huggingface_hub.hf_hub_download(repository, names[-1], revision=revision))


def load_tag(tag: str, file: Path, backbone: Backbone) -> None:
    """Load the file into the backbone as timm does for this tag, by its names; UserError unless every tensor fits."""
    try:
        # With its classifier, because timm loads strictly only then.
        whole = timm.create_model(tag, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
        whole.reset_classifier(0)
        backbone.trunk.load_state_dict(whole.state_dict(), strict=True)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{file} does not fit timm's {tag}: {' '.join(str(error).split())}") from error
    _refuse_unusable(str(file), backbone.trunk.state_dict())


def _refuse_unusable(source: str, state: Mapping[str, Any]) -> None:
    """UserError for a state that names no tensor, something else than tensors, or values that are not finite."""
    others = [f"{key} ({type(value).__name__})" for key, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        raise UserError(f"{source}: the state_dict holds {', '.join(others) or 'nothing'}; expected tensors alone")
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"{source} has values of {broken[0]} that are not finite")


class MapNetwork(nn.Module):
    """A module that gives maps, with what Backbone expects of timm's networks."""

    def __init__(self, module: nn.Module, channels: int) -> None:
        super().__init__()
        self.module = module
        self.num_features = channels
        self.pretrained_cfg = {"input_size": (3, PROBE_PIXELS, PROBE_PIXELS)}

    def forward_features(self, images: Tensor) -> Tensor:
        feature_map: Tensor = self.module(images)
        return feature_map


def call_loader(loader: str, args: Mapping[str, Any]) -> Backbone:
    """Call the function and check its network. UserError where it is missing, raises, or gives no map."""
    function = _loader_function(loader)
    try:
        module = function(**args)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"loader {loader} raised {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"loader {loader} returned {type(module).__name__}; expected an nn.Module")
    is_timms = all(hasattr(module, name) for name in ("forward_features", "pretrained_cfg", "num_features"))
    trunk = module.eval() if is_timms else MapNetwork(module.eval(), _map_channels(loader, module))
    try:
        backbone = Backbone(loader, trunk)
    except (InvalidInputError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"loader {loader}: its network gives no map on the device of its images: {error}") from error
    _refuse_unusable(f"loader {loader}", module.state_dict())
    return backbone


def _loader_function(loader: str) -> Callable[..., Any]:
    module, _, name = loader.partition(":")
    try:
        function: Callable[..., Any] = getattr(import_module(module), name)
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"loader {loader} cannot be imported: {type(error).__name__}: {error}; expected my_module:function, in the "
            "working directory or on the Python path"
        ) from error
    return function


def _map_channels(loader: str, module: nn.Module) -> int:
    """Return the channels of the map that the module returns. UserError where it raises, or returns no map."""
    with torch.no_grad():
        try:
            output = module(torch.zeros(1, 3, PROBE_PIXELS, PROBE_PIXELS))
        except Exception as error:  # whatever the user's code raises
            raise UserError(
                f"loader {loader}: its network raised {type(error).__name__} for images (1, 3, {PROBE_PIXELS}, "
                f"{PROBE_PIXELS}): {error}"
            ) from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(output, Tensor) or output.dim() != 4:
        raise UserError(f"loader {loader}: its network returned {shape}; expected a map (B, C, h, w)")
    return output.shape[1]


def digest_of_tensors(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of all tensors, whatever their order."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
