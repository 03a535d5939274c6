"""The config of segmentation. Light, as config.py: no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from data.config import DataConfig, NormalisationChoice
from runtime.config import ComputeConfig, Config, EvalMachineConfig, Momentum, PositiveInt, added_later, require


class SegmentationMachineConfig(EvalMachineConfig):
    log_steps: PositiveInt = 50  # iterations between two rows of metrics.jsonl
    val_batch_size: PositiveInt = 1  # images; more than one only where all have the same size
    # Validation images, spread over the list, whose predictions are kept (predictions.npz) and drawn (predictions.png).
    predictions: Annotated[int, Field(ge=0, le=32, description="images, 0 for none")] = 8


class OptimizerConfig(Config):
    """SGD with poly decay (published for ResNets) or AdamW with warm-up (ConvNeXts)."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01  # peak
    momentum: Momentum = 0.9  # of SGD
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Literal["poly", "cosine"] = "poly"
    power: PositiveFloat = 0.9  # of poly
    end_lr: NonNegativeFloat = 1e-4  # at the last iteration
    warmup_iterations: NonNegativeInt = 0  # linear, from a millionth of lr
    # first_iteration is published for ConvNeXts: the warm-up is then a factor on the decaying rate.
    decay_start: Literal["warmup_end", "first_iteration"] = added_later("warmup_end")

    def check(self) -> None:
        require(self.end_lr <= self.lr, "optimizer.end_lr", self.end_lr, f"0 to optimizer.lr ({self.lr})")
        # mmengine's warm-up of one iteration never leaves its first factor.
        require(self.warmup_iterations != 1, "optimizer.warmup_iterations", 1, "0 for none, or 2 and more")
        # mmengine's schedulers multiply the present rate, so two of them combine only where they decay to 0.
        combined = self.decay_start == "first_iteration" and self.warmup_iterations > 0
        zero = "0 with a warm-up and decay_start = first_iteration"
        require(not combined or self.end_lr == 0, "optimizer.end_lr", self.end_lr, zero)


def network_changes(output_stride: int, drop_path: float | None) -> dict[str, Any]:
    """Return the arguments of the parent's network that an evaluation changes."""
    changes: dict[str, Any] = {"output_stride": output_stride} if output_stride else {}
    return changes if drop_path is None else changes | {"drop_path_rate": drop_path}


class SegmentationConfig(ComputeConfig):
    """BatchNorm and a 1x1 convolution on the backbone's map (`taps: last`) or on all its stages (`taps: all`).

    With torchrun or srun, `batch_size` is of all processes together. Only dropout and drop path depend on their number.
    """

    stage: ClassVar[str] = "segmentation"

    data: DataConfig = DataConfig(name="voc")
    taps: Literal["last", "all"] = "last"  # all: every stage resized to the largest one and concatenated
    # The last map is after the norm that comes before the classifier (ConvNeXt), as pretraining sees it; false: before
    # that norm, as the published segmentation networks give it to the head. No other stage has such a norm.
    final_norm: bool = added_later(True)
    finetune: bool = False  # false: the backbone stays as it was pretrained, in eval mode
    backbone_lr_multiplier: PositiveFloat = 0.1  # of optimizer.lr, when finetuning
    # Of the backbone, when finetuning.
    drop_path: float | None = added_later(None, ge=0, lt=1, description="a share of blocks, or null for pretraining's")
    output_stride: Literal[0, 8, 16, 32] = 0  # dilate the backbone to it (8: by 1, 1, 2, 4 for a ResNet); 0: its own
    image_scale: list[PositiveInt] | None = [2048, 512]  # longest, shortest side; null: as it is
    scale_range: list[PositiveFloat] = [0.5, 2.0]  # random factor on image_scale, training
    crop_size: PositiveInt = 512  # pixels, training; the window of slide inference; its height with a crop_width
    crop_width: NonNegativeInt = added_later(0, description="pixels, 0 for a square")
    # A crop of which one class covers more is drawn again (at most ten times); 1: never.
    cat_max_ratio: Annotated[float, Field(gt=0, le=1)] = 0.75
    flip: bool = True
    photometric_distortion: bool = True
    inference: Literal["whole", "slide"] = "whole"
    slide_stride: int = 341  # pixels, down and across
    # fcn: mmsegmentation's, two 3x3 convolutions before the last.
    head: Literal["linear", "fcn"] = added_later("linear")
    # null: none in the linear head, 0.1 in fcn.
    dropout: float | None = added_later(None, ge=0, lt=1, description="a share of channels, or null for the head's own")
    # Of training; val is predicted in float32. float16 on CUDA alone.
    precision: Literal["float32", "bfloat16", "float16"] = added_later("float32")  # type: ignore[assignment]  # wider
    iterations: Annotated[int, Field(ge=2)] = 40000
    batch_size: Annotated[int, Field(ge=2, description="BatchNorm needs several images")] = 16
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: NonNegativeInt = 0
    normalisation: NormalisationChoice = added_later(None)
    machine: SegmentationMachineConfig = SegmentationMachineConfig()

    def check(self) -> None:
        ok = self.drop_path is None or self.finetune
        require(ok, "drop_path", self.drop_path, "null, because the backbone is frozen; or set finetune = true")
        scale = self.image_scale
        require(scale is None or len(scale) == 2, "image_scale", scale, "[longest, shortest] or null")
        span = self.scale_range
        require(len(span) == 2 and span[0] <= span[1], "scale_range", span, "[low, high], above 0")
        if self.inference == "slide":
            side = min(self.crop)
            allowed = f"1 to {side} pixels: a wider one leaves gaps between windows"
            require(1 <= self.slide_stride <= side, "slide_stride", self.slide_stride, allowed)
        warmup, most = self.optimizer.warmup_iterations, self.iterations - 2
        require(warmup <= most, "optimizer.warmup_iterations", warmup, f"0 to {most}, fewer than iterations")
        # mmengine's schedulers lead every rate to end_lr, the backbone's too.
        end, rate = self.optimizer.end_lr, self.optimizer.lr * self.backbone_lr_multiplier
        falls = (
            f"0 to {rate:g}, the backbone's rate (optimizer.lr * backbone_lr_multiplier), or it would rise; lower "
            "end_lr, or raise one of those"
        )
        require(not self.finetune or end <= rate * (1 + 1e-9), "optimizer.end_lr", end, falls)  # equal, but rounded

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.crop_size, self.crop_width or self.crop_size

    @property
    def protocol(self) -> str:
        return self.named(f"{'finetuned' if self.finetune else 'frozen'} {self.head}")

    @property
    def label(self) -> str:
        head = "" if self.head == "linear" else f"-{self.head}"
        return f"{'finetuned' if self.finetune else 'frozen'}{head}-{self.taps}"

    @property
    def format_version(self) -> int:
        # In 1, images were turned by their EXIF tag and masks were not, and VOC's train_aug took the masks of train.txt
        # from SegmentationClassAug. scenes has neither, so its runs keep their names.
        return 1 if self.data.name == "scenes" else 2
