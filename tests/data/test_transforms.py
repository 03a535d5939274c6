"""Evaluation images against torchvision's transforms on PIL images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms

from data.catalog import open_dataset
from data.config import DataConfig
from data.images import ImageList, read_image
from data.transforms import LabelledDataset, eval_transform, train_transform
from data.views import sample_generator
from runtime.errors import UserError


@pytest.mark.parametrize("shape", [(300, 401), (401, 300), (100, 90), (256, 256)])
def test_eval_transform_equals_torchvision(shape: tuple[int, int]) -> None:
    photo = Image.fromarray(load_sample_images().images[0]).resize(shape)
    expected = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(photo)
    ours = eval_transform(256, 224)(np.array(photo), sample_generator(0, 0, 0))
    assert ours.shape == (224, 224, 3)
    assert np.abs(ours.astype(int) - np.array(expected, int)).mean() < 0.01


def test_scenes_are_evaluated_at_their_own_pixels(small_scenes: DataConfig) -> None:
    path = open_dataset(small_scenes).images("val").paths[0]
    image = read_image(path)
    assert np.array_equal(eval_transform(32, 32)(image, sample_generator(0, 0, 0)), image)


def test_train_transform_crops_and_mirrors() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[..., 0] = np.arange(100)  # red grows to the right
    crops = [train_transform(32, (0.2, 0.3))(image, sample_generator(0, 0, n)) for n in range(100)]
    slopes = np.array([int(crop[16, 31, 0]) - int(crop[16, 0, 0]) for crop in crops])
    assert 30 < (slopes < 0).sum() < 70
    assert 36 < np.abs(slopes).mean() < 54  # a crop of a quarter of the area is about half as wide
    upright = [train_transform(32, flip=False)(image, sample_generator(0, 0, n)) for n in range(50)]
    assert all(int(crop[16, 31, 0]) > int(crop[16, 0, 0]) for crop in upright)


def test_labelled_dataset_is_a_function_of_seed_epoch_and_index(small_scenes: DataConfig) -> None:
    images = open_dataset(small_scenes).images("train")
    one, other = (LabelledDataset(images, train_transform(32), seed=seed) for seed in (0, 1))
    first, labels = one.batch([7])
    assert first.shape == (1, 3, 32, 32)
    assert labels.tolist() == [images.labels[7]]
    assert torch.equal(one.batch([7])[0], first)
    assert not torch.equal(other.batch([7])[0], first)
    one.set_epoch(1)
    assert not torch.equal(one.batch([7])[0], first)
    one.set_epoch(0)
    batch, labels = one.batch([3, 7])
    assert torch.allclose(batch[1], first[0], atol=1e-6)
    assert labels.tolist() == [images.labels[3], images.labels[7]]


def test_batches_follow_the_indices(small_scenes: DataConfig) -> None:
    images = open_dataset(small_scenes).images("val")
    dataset = LabelledDataset(images, eval_transform(32, 32))
    batches = [dataset.batch(range(len(images))[start : start + 8]) for start in (0, 8, 16)]
    assert [tuple(pixels.shape) for pixels, _ in batches] == [(8, 3, 32, 32)] * 2 + [(4, 3, 32, 32)]
    assert torch.cat([labels for _, labels in batches]).tolist() == images.labels


def test_images_without_labels_and_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="without labels"):
        LabelledDataset(ImageList([], None), eval_transform(32, 32))
    with pytest.raises(UserError, match="1 to 128"):
        eval_transform(128, 224)
