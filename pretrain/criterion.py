"""The criterion of a pretraining: VICRegL's, or one that a package of the user's own registers.

imports: [my_package]
loss: {name: my_criterion, args: {temperature: 0.1}, alpha: 0.5}

The package calls `register_criterion("my_criterion", make)`. It loads no torch, so that reading a config is quick.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.config import ADDED_LATER
from runtime.errors import UserError
from vicregl.config import CriterionConfig, ModelConfig
from vicregl.errors import require

if TYPE_CHECKING:
    from torch import nn

VICREGL = "vicregl"
_CRITERIA: dict[str, Callable[..., nn.Module]] = {}
# Columns of metrics.jsonl that are not terms of the criterion.
RESERVED = (
    *("step", "epoch", "time", "seconds", "learning_rate", "data_wait_percent", "images_per_second", "peak_gpu_gb"),
    *("probe_top1", "images_skipped"),
    *(f"{kind}_{features}" for kind in ("std", "correlation", "rank") for features in ("pooled", "local")),
)


def register_criterion(name: str, make: Callable[..., nn.Module]) -> None:
    """Add a criterion of your own, which `imports` of a config or study loads. UserError where the name is another's.

    `make(loss, embedding, channels, **loss.args)` returns a module. `loss` is the section of the config, with alpha and
    the options of VICRegLCriterion, which are part of the run's identity whether `make` uses them or not; `embedding`
    and `channels` are the widths of embeddings and maps. An argument that `make` does not take, and any error that it
    raises, is reported before anything is made.

    Every step calls it as VICRegLCriterion: criterion(embeddings, maps, locations), each a list over views; at alpha 1
    (or local: none) there are no maps, at alpha 0 no embeddings. They have the network's precision: compute in float32.
    It returns a dict of scalar tensors: `loss`, whose gradient reaches embeddings and maps, and terms to log, by names
    of their own. Its parameters are trained with the network's, by the same optimiser; checkpoints have them and its
    buffers.

    Over several processes each calls it with its share of the batch, and DDP takes the mean of their gradients. So a
    mean over samples needs nothing. A loss of statistics over the batch must gather all samples, with a gradient, by
    torch.distributed.nn.functional.all_gather, or the number of processes, which is not in a run's name, changes the
    result. With train.sync_batch_norm the module's BatchNorms take their statistics over all processes.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise UserError(f"criterion {name!r}: expected a name of letters, digits and _, which names its runs")
    if name == VICREGL or _CRITERIA.get(name, make) is not make:
        raise UserError(f"criterion {name!r} is registered already; choose another name")
    _CRITERIA[name] = make


@dataclass(frozen=True)
class LossConfig(CriterionConfig):
    """The criterion's name and its options; those of VICRegLCriterion are given to a criterion of your own too."""

    name: str = field(default=VICREGL, metadata=ADDED_LATER)  # or what a package registered
    args: dict[str, Any] = field(default_factory=dict, metadata=ADDED_LATER)  # of a criterion of your own

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [VICREGL, *_CRITERIA]
        require(self.name in known, "name", self.name, f"{', '.join(known)}, or what a package in `imports` registers")
        require(
            self.is_own or not self.args, "args", self.args, f"none for name: {VICREGL}, whose options stand beside"
        )

    @property
    def is_own(self) -> bool:
        return self.name != VICREGL

    @property
    def unused(self) -> tuple[str, ...]:
        """Return the options on which the loss does not depend: none is known not to be used by your own."""
        return () if self.is_own else super().unused


def make_criterion(loss: LossConfig, model: ModelConfig) -> nn.Module:
    """Create the criterion. UserError for arguments that a criterion of the user's own refuses."""
    if not loss.is_own:
        from vicregl.criterion import VICRegLCriterion

        return VICRegLCriterion(loss)
    from torch import nn

    make, widths = _CRITERIA[loss.name], [int(text.rpartition("-")[2]) for text in (model.expander, model.projector)]
    try:
        inspect.signature(make).bind(loss, *widths, **loss.args)
        criterion = make(loss, *widths, **loss.args)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        what = f"config: loss.args = {loss.args} is refused by the criterion {loss.name!r}"
        raise UserError(f"{what}: {type(error).__name__}: {error}; it takes {inspect.signature(make)}") from error
    if not isinstance(criterion, nn.Module):
        raise UserError(f"criterion {loss.name!r}: expected a torch.nn.Module, got a {type(criterion).__name__}")
    criterion.register_forward_hook(_Check())
    return criterion


def check_criterion(loss: LossConfig, model: ModelConfig) -> None:
    """Raise UserError where a criterion of the user's own cannot be made, without using up random numbers."""
    if loss.is_own:
        from torch.random import fork_rng

        with fork_rng(devices=[]):
            make_criterion(loss, model)


class _Check:
    """A forward hook: raises UserError unless a criterion of the user's own does as `register_criterion` says."""

    def __init__(self) -> None:
        self.is_first = True

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], terms: Any) -> None:
        from torch import Tensor, is_grad_enabled

        name = type(module).__name__
        scalars = isinstance(terms, dict) and all(isinstance(t, Tensor) and t.numel() == 1 for t in terms.values())
        if not scalars or "loss" not in terms or terms.keys() & {*RESERVED}:
            shapes = {k: tuple(getattr(t, "shape", ())) for k, t in terms.items()} if isinstance(terms, dict) else terms
            raise UserError(
                f"the criterion {name} returned {shapes}; expected a dict of tensors of one number, `loss` and terms "
                f"with names of their own, which these are not: {', '.join(RESERVED)}"
            )
        if self.is_first and is_grad_enabled():
            self.is_first = False
            _refuse_unused(name, inputs[0], inputs[1], terms["loss"])


def _refuse_unused(name: str, embeddings: Sequence[Any], maps: Sequence[Any], loss: Any) -> None:
    """Raise UserError for outputs of the network on which the loss does not depend: their layers would not learn."""
    from torch.autograd import grad

    stages = maps if maps and isinstance(maps[0], list) else [maps]
    outputs = [("embeddings", embeddings, "loss.alpha=0"), *(("maps", views, "loss.alpha=1") for views in stages)]
    for what, views, without in outputs:
        known = loss.requires_grad and (
            not views or any(g is not None for g in grad(loss, views, retain_graph=True, allow_unused=True))
        )
        if not known:
            raise UserError(
                f"the loss of the criterion {name} does not depend on the {what}, whose layers would not learn; with "
                f"{without} they are not computed"
            )
