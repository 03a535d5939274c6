"""Images in shards, as clusters hold ImageNet: tar files of WebDataset, or parquet files of Hugging Face.

Shards are another form of a folder of images, not another dataset: the same files, names and labels are the same
images in the same order, hence the same run. A split's shards are all files of one suffix

    ROOT/train/*.tar         or ROOT/*train*.tar, ROOT/data/*train*.tar
    ROOT/train/*.parquet     or ROOT/*train*.parquet, ROOT/data/*train*.parquet (as data/train-00000-of-00294.parquet)

with val or validation for the other split. A sample of a tar is KEY.jpg (.png, ...) and its label, the text of KEY.cls
or "label" in KEY.json; a row of parquet has its image and label in the columns that Hugging Face's features describe
so, or in `image` and `label`. Names of the classes are those of the features, or the folders in the names of a tar's
images; if there are none, the numbers.

Labels are taken for the numbers 0, 1, ... of sorted class folders, which nothing in a shard proves. Scores do not
depend on it, because both splits number alike (names are compared, where shards have them); the order of the images
does, hence which run it is: shards that number otherwise are other data than their folder. data.json names the classes
in the order of the labels, and `python -m data.check` that of label 0.

Images are ordered as in folders: by label, then by name, which is "filename" in KEY.json, else KEY.jpg itself, in
parquet the image's path; images of equal names by shard and place in it.

Each shard is indexed once, in $VICREGL_DATA/shards (or data/cache/shards), and again if its size or modification time
changes. Images of a tar are read where they are. Those of parquet are compressed together, a hundred images and more,
so that random access would read each image a hundred times: they are copied out, to as many bytes again.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.config import data_root
from data.images import IMAGE_SUFFIXES, ImageList
from data.shard_formats import Contents, PackedImage, read_tar, unpack_parquet
from runtime import files
from runtime.config import identity_hash
from runtime.errors import UserError

FORMAT = 1  # of an index; raise it when equal shards come to give other contents
_SUFFIXES = (".tar", ".parquet")
_FOLDERS = {"train": ("train",), "val": ("val", "validation")}


@dataclass(frozen=True)
class Shards:
    """Where the bytes of images are, by number."""

    paths: list[Path]  # of the shards
    files: list[Path]  # with the bytes: a tar itself, or the copy of a parquet file's images
    places: npt.NDArray[np.int64]  # (images, 3): number of the shard, offset and length in bytes

    def select(self, numbers: Sequence[int]) -> Shards:
        """Return the places of these images alone, in this order."""
        return Shards(self.paths, self.files, self.places[np.asarray(numbers, int)])

    def read(self, number: int, path: Path) -> bytes:
        """Raises UserError, naming `path`, if the bytes cannot be read."""
        shard, offset, length = self.places[number].tolist()
        try:
            with open(self.files[shard], "rb", buffering=0) as file:
                content = os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise UserError(f"cannot read the image {path}: {error.strerror} ({self.files[shard]})") from error
        if len(content) < length:
            raise UserError(f"cannot read the image {path}: {self.files[shard]} was cut off since it was indexed")
        return content

    def name(self, number: int, path: Path) -> str:
        """Return the part of an image's path that is inside of its shard."""
        return str(path)[len(f"{self.paths[self.places[number, 0]]}/") :]


def find_shards(root: Path, split: str) -> list[Path]:
    """Return the shards of "train" or "val" by name; none if there are none.

    Raises UserError where several sets fit, a name is of both splits, or one of `-of-00294` is missing.
    """
    own = [root / name for name in _FOLDERS[split]]
    sets: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for folder in (*own, root, root / "data"):
        for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
            suffix = os.path.splitext(name)[1]
            named = [split] if folder in own else _splits_in(name)
            if suffix not in _SUFFIXES or name.startswith(".") or split not in named:
                continue
            if len(named) > 1:
                raise UserError(f"the name of the shard {folder / name} is of {' and of '.join(named)}; name one split")
            sets[folder, suffix].append(folder / name)
    if len(sets) > 1:
        places = " and ".join(f"{len(shards)} {suffix} files in {folder}" for (folder, suffix), shards in sets.items())
        raise UserError(f"{root} has several sets of {split} shards: {places}; keep one of them there")
    shards = next(iter(sets.values()), [])
    _refuse_missing(shards)
    return shards


def _splits_in(name: str) -> list[str]:
    """Return the splits that the name of a file has as words."""
    words = {split: f"(?<![a-zA-Z])({'|'.join(names)})(?![a-zA-Z])" for split, names in _FOLDERS.items()}
    return [split for split, word in words.items() if re.search(word, name)]


def _refuse_missing(shards: Sequence[Path]) -> None:
    """Raise UserError where names as train-00007-of-00294.parquet promise more shards."""
    numbered = [re.search(r"(\d+)-of-(\d+)", shard.name) for shard in shards]
    promised = {int(match[2]) for match in numbered if match}
    if promised and promised != {len(shards)}:
        absent = sorted(set(range(max(promised))) - {int(match[1]) for match in numbered if match})
        raise UserError(
            f"{shards[0].parent} holds {len(shards)} shards whose names promise {max(promised)}; missing are "
            f"{len(absent)}, as number {absent[:3]}. Complete the download, or remove shards of another version"
        )


def read_shards(root: Path, split: str, classes: list[str] | None = None) -> tuple[ImageList, list[str]]:
    """Return the images of a split, and its classes: `classes`, or if they are None those of its labels.

    Raises UserError for shards that are missing, broken, without images or labels, or of other classes.
    """
    shards = find_shards(root, split)
    if not shards:
        expected = " or ".join(f"{split}/*{suffix}" for suffix in _SUFFIXES)
        raise UserError(f"{root} holds no shards of {split}; expected {expected}, or {split} in the names of its files")
    contents = _index(shards)
    order = sorted(
        (image.label, *image.name.rpartition("/")[::2], shard, place)
        for shard, content in enumerate(contents)
        for place, image in enumerate(content.images)
    )
    if not order:
        raise UserError(f"the shards {shards[0]}, ... hold no image; allowed: {', '.join(sorted(IMAGE_SUFFIXES))}")
    labels, own = [label for label, *_ in order], _class_names(shards[0], contents)
    numbers = [str(label) for label in range(min(labels[-1] + 1, len(labels) + 1))]  # a wrong label may be huge
    classes = classes or own or numbers
    _refuse_other_classes(shards[0], split, labels, own, classes)
    paths, places = [], []
    for *_, shard, place in order:
        image, row = contents[shard].images[place], f"{place}/" if shards[shard].suffix == ".parquet" else ""
        paths.append(f"{shards[shard]}/{row}{image.name}")
        places.append((shard, image.offset, image.length))
    if len(set(paths)) < len(paths):
        twice = [path for path, count in Counter(paths).items() if count > 1]
        raise UserError(f"{len(twice)} images are in their shard twice, as {twice[0]}; make the shards again")
    left_out: Counter[str] = Counter()
    for content in contents:
        left_out.update(content.left_out)
    held = Shards(shards, [_bytes_file(shard) for shard in shards], np.array(places, np.int64))
    return ImageList(list(map(Path, paths)), labels, dict(left_out), held), classes


def _class_names(first: Path, contents: Sequence[Contents]) -> list[str] | None:
    """Return the names that features give, or the folders in the images' names; None if they name no classes."""
    given = {tuple(content.classes) for content in contents if content.classes is not None}
    if len(given) > 1:
        raise UserError(f"the shards {first}, ... name different classes; keep those of one dataset there")
    if given:
        return list(given.pop())
    folders = sorted({(image.label, image.name.rpartition("/")[0]) for each in contents for image in each.images})
    names = [folder.partition("/")[0] for _, folder in folders]
    one_each = len(set(names)) == len(names) == len({label for label, _ in folders})
    return names if one_each and all(names) else None


def _refuse_other_classes(
    first: Path, split: str, labels: Sequence[int], own: list[str] | None, classes: list[str]
) -> None:
    """Raise UserError unless every class has an image, every label a class, and the classes have the names of train."""
    present = set(labels)
    missing = [name for label, name in enumerate(classes) if label not in present]
    unknown = sorted(label for label in present if label >= len(classes))
    if missing or unknown:
        raise UserError(
            f"the {split} shards {first}, ...: {len(missing)} of {len(classes)} classes have no image {missing[:3]}, "
            f"{len(unknown)} labels are of no class {unknown[:3]}; expected the labels 0 to {len(classes) - 1}, each "
            "in both splits"
        )
    unnamed = classes == [str(label) for label in range(len(classes))]
    if own not in (None, classes) and not unnamed:
        raise UserError(f"the {split} shards {first}, ... name the classes {own[:3]}, and train {classes[:3]}")


def _index(shards: Sequence[Path]) -> list[Contents]:
    """Return the contents of each shard, from its index; make those that are missing or of another version."""
    with ThreadPoolExecutor(16) as pool:  # a network file system is slow for one request, but takes many at once
        known = list(pool.map(_load, shards))
        if missing := [shard for shard, contents in zip(shards, known, strict=True) if contents is None]:
            folder = data_root() / "shards"
            print(f"indexing {len(missing)} shards, once: {missing[0]}, ... -> {folder}", flush=True)
            files.make_folder(folder, "keep indexes elsewhere: VICREGL_DATA=FOLDER in the environment")
            with files.lock(folder / "lock"):  # one of several processes makes them, the others wait
                files.remove_leftovers(folder)
                _refuse_small_disk(folder, [shard for shard in missing if _load(shard) is None])
                known = list(pool.map(lambda shard: _load(shard) or _make(shard), shards))
    return [contents for contents in known if contents is not None]


def _stamp(shard: Path) -> list[int]:
    try:
        status = os.stat(shard)
    except OSError as error:
        raise UserError(
            f"cannot read the shard {shard}: {error.strerror}. Copy it again, or remove the link"
        ) from error
    return [status.st_size, status.st_mtime_ns, FORMAT]


def _beside(shard: Path, suffix: str) -> Path:
    return data_root() / "shards" / f"{shard.stem}-{identity_hash(str(shard.resolve()))}{suffix}"


def _bytes_file(shard: Path) -> Path:
    return shard if shard.suffix == ".tar" else _beside(shard, ".bin")


def _load(shard: Path) -> Contents | None:
    """Return the index of a shard; None if there is none of this version of it."""
    document = files.read_json_object(_beside(shard, ".json"))
    if document is None or document.get("stamp") != _stamp(shard) or not _bytes_file(shard).is_file():
        return None
    contents = Contents(**document["contents"])
    contents.images = [PackedImage(*image) for image in contents.images]
    return contents


def _make(shard: Path) -> Contents:
    """Index a shard. Raises UserError, naming it, if it is broken."""
    stamp = _stamp(shard)
    try:
        contents = read_tar(shard) if shard.suffix == ".tar" else unpack_parquet(shard, _bytes_file(shard))
    except (OSError, ValueError, tarfile.TarError) as error:  # pyarrow's errors are the first two
        raise UserError(f"cannot read the shard {shard}: {error}. Copy it again, or make it again") from error
    files.write_text(_beside(shard, ".json"), json.dumps({"stamp": stamp, "contents": asdict(contents)}))
    return contents


def _refuse_small_disk(folder: Path, shards: Sequence[Path]) -> None:
    needed = sum(_stamp(shard)[0] for shard in shards if shard.suffix == ".parquet")
    files.require_space(folder, needed, "copying the images out of parquet", "set VICREGL_DATA to a larger disk")
