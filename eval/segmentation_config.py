"""The config of a segmentation evaluation, and the name that it gives the run. Light: planning imports it."""

from __future__ import annotations

from data.config import DataConfig
from runtime.config import Config, EvalMachineConfig, added_later, require, split_machine
from runtime.rundir import Identity

STAGE = "segmentation"
# Raise one when the same config comes to measure something else. In 1 images were turned by their EXIF tag and their
# masks were not, and VOC's train_aug took the masks of train.txt from SegmentationClassAug; scenes has neither.
FORMAT, SCENES_FORMAT = 2, 1


class SegmentationMachineConfig(EvalMachineConfig):
    log_steps: int = 50  # iterations between two rows of metrics.jsonl
    val_batch_size: int = 1  # images; more than one only where all have the same size
    predictions: int = 4  # validation images drawn in predictions.png, spread over the list; 0: none

    def check(self) -> None:
        super().check()
        require(self.log_steps >= 1, "machine.log_steps", self.log_steps, "1 or more")
        require(self.val_batch_size >= 1, "machine.val_batch_size", self.val_batch_size, "1 or more")
        require(0 <= self.predictions <= 32, "machine.predictions", self.predictions, "0 (no picture) to 32")


class OptimizerConfig(Config):
    """SGD with poly decay (published for ResNets) or AdamW with warm-up (ConvNeXts)."""

    name: str = "sgd"  # sgd | adamw
    lr: float = 0.01  # peak
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4
    schedule: str = "poly"  # poly | cosine
    power: float = 0.9  # of poly
    end_lr: float = 1e-4  # at the last iteration
    warmup_iterations: int = 0  # linear, from a millionth of lr
    # warmup_end | first_iteration (published for ConvNeXts: the warm-up is then a factor on the decaying rate)
    decay_start: str = added_later("warmup_end")

    def check(self) -> None:
        require(self.name in ("sgd", "adamw"), "optimizer.name", self.name, "sgd or adamw")
        require(self.schedule in ("poly", "cosine"), "optimizer.schedule", self.schedule, "poly or cosine")
        require(self.lr > 0, "optimizer.lr", self.lr, "above 0")
        require(0 <= self.end_lr <= self.lr, "optimizer.end_lr", self.end_lr, f"0 to optimizer.lr ({self.lr})")
        require(self.power > 0, "optimizer.power", self.power, "above 0")
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "0 to below 1")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        require(self.warmup_iterations >= 0, "optimizer.warmup_iterations", self.warmup_iterations, "0 or more")
        starts = ("warmup_end", "first_iteration")
        require(self.decay_start in starts, "optimizer.decay_start", self.decay_start, " or ".join(starts))
        # mmengine's schedulers multiply the rate that they find, so they combine only where they decay to 0.
        combined = self.decay_start == "first_iteration" and self.warmup_iterations > 0
        allowed = "0 with a warm-up and decay_start = first_iteration"
        require(not combined or self.end_lr == 0, "optimizer.end_lr", self.end_lr, allowed)


class SegmentationConfig(Config):
    """BatchNorm and a 1x1 convolution on the backbone's map (`taps: last`) or on all its stages (`taps: all`).

    With torchrun or srun the batch is shared out: `batch_size` is of all processes together. Only dropout and drop path
    depend on the number of processes: each draws its own.
    """

    data: DataConfig = DataConfig(name="voc")
    taps: str = "last"  # last | all: every stage resized to the largest one and concatenated
    # The last map is after the norm that comes before the classifier (ConvNeXt), as pretraining sees it; false: before
    # that norm, as the published segmentation networks give it to the head. No other stage has such a norm.
    final_norm: bool = added_later(True)
    finetune: bool = False  # false: the backbone stays as it was pretrained, in eval mode
    backbone_lr_multiplier: float = 0.1  # of optimizer.lr, when finetuning
    drop_path: float | None = added_later(None)  # of the backbone, when finetuning; null: as it was pretrained with
    output_stride: int = 0  # dilate the backbone to this stride (8: dilations 1, 1, 2, 4 for a ResNet); 0: its own
    image_scale: list[int] | None = [2048, 512]  # longest, shortest side; null: as it is
    scale_range: list[float] = [0.5, 2.0]  # random factor on image_scale, training
    crop_size: int = 512  # pixels, training; and the window of slide inference; its height where crop_width is given
    crop_width: int = added_later(0)  # pixels; 0: square
    cat_max_ratio: float = 0.75  # a crop of which one class covers more is drawn again (at most ten times); 1: never
    flip: bool = True
    photometric_distortion: bool = True
    inference: str = "whole"  # whole | slide
    slide_stride: int = 341  # pixels, down and across
    head: str = added_later("linear")  # linear | fcn: mmsegmentation's FCNHead, two 3x3 convolutions before the last
    dropout: float | None = added_later(None)  # of the head's channels; null: none in the linear head, 0.1 in fcn
    precision: str = added_later("float32")  # of training, by autocast: float32 | bfloat16 | float16 (CUDA)
    iterations: int = 40000
    batch_size: int = 16
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = 0
    # null: ImageNet's, refused for a network of others; imagenet, network (its own), or a tag of timm's weights of it
    normalisation: str | None = added_later(None)
    machine: SegmentationMachineConfig = SegmentationMachineConfig()

    def check(self) -> None:
        require(self.taps in ("last", "all"), "taps", self.taps, "last or all")
        require(self.inference in ("whole", "slide"), "inference", self.inference, "whole or slide")
        require(self.output_stride in (0, 8, 16, 32), "output_stride", self.output_stride, "0 (its own), 8, 16 or 32")
        require(self.backbone_lr_multiplier > 0, "backbone_lr_multiplier", self.backbone_lr_multiplier, "above 0")
        if self.drop_path is not None:
            ok = self.finetune and 0 <= self.drop_path < 1
            require(ok, "drop_path", self.drop_path, "0 to below 1 with finetune = true, else null")
        scale = self.image_scale
        require(
            scale is None or (len(scale) == 2 and min(scale) > 0), "image_scale", scale, "[longest, shortest] or null"
        )
        span = self.scale_range
        require(len(span) == 2 and 0 < span[0] <= span[1], "scale_range", span, "[low, high], above 0")
        require(self.crop_size >= 1, "crop_size", self.crop_size, "1 pixel or more")
        require(0 < self.cat_max_ratio <= 1, "cat_max_ratio", self.cat_max_ratio, "above 0, to 1")
        require(self.crop_width >= 0, "crop_width", self.crop_width, "0 (square) or more pixels")
        if self.inference == "slide":
            side = min(self.crop)
            allowed = f"1 to {side} pixels: a wider one leaves gaps between windows"
            require(1 <= self.slide_stride <= side, "slide_stride", self.slide_stride, allowed)
        require(self.head in ("linear", "fcn"), "head", self.head, "linear or fcn")
        dropout = self.dropout
        require(dropout is None or 0 <= dropout < 1, "dropout", dropout, "0 to below 1, or null (the head's own)")
        kinds = ("float32", "bfloat16", "float16")
        require(self.precision in kinds, "precision", self.precision, ", ".join(kinds))
        require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more: BatchNorm needs them")
        require(self.iterations >= 2, "iterations", self.iterations, "2 or more")
        warmup, most = self.optimizer.warmup_iterations, self.iterations - 2
        require(warmup <= most, "optimizer.warmup_iterations", warmup, f"0 to {most}, fewer than iterations")
        require(self.seed >= 0, "seed", self.seed, "0 or more")

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.crop_size, self.crop_width or self.crop_size

    @property
    def protocol(self) -> str:
        return f"{'finetuned' if self.finetune else 'frozen'} {self.head}"


def identity(config: SegmentationConfig, parent_hash: str) -> Identity:
    """The run that evaluates the pretraining run of that hash."""
    how = "finetuned" if config.finetune else "frozen"
    head = "" if config.head == "linear" else f"-{config.head}"
    slug = f"{config.data.name}-{how}{head}-{config.taps}-of-{parent_hash[:6]}-seed{config.seed}"
    version = SCENES_FORMAT if config.data.name == "scenes" else FORMAT
    return Identity(STAGE, slug, version, split_machine(config)[0], parent_hash)
