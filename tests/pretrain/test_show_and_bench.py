"""python -m pretrain.show and python -m pretrain.bench: what they draw and tell is so."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.config import DataConfig, ViewsConfig
from data.views import ViewMaker, sample_generator
from pretrain import bench, show
from runtime.errors import UserError
from vicregl.config import CriterionConfig
from vicregl.local import matched_pairs

CONFIG = Path(__file__).parents[2] / "pretrain" / "configs" / "quickstart.yaml"
PLAIN = ViewsConfig(
    large_size=64,
    large_scale=[0.2, 0.7],
    jitter_probability=0.0,
    gray_probability=0.0,
    blur_probability=[0.0, 0.0],
    solarize_probability=[0.0, 0.0],
)


def overrides(data: DataConfig) -> list[str]:
    sizes = ["views.large_size=32", "views.small_count=1", "views.small_size=16", "train.batch_size=8"]
    return [f"data.name={data.name}", f"data.root={data.root}", *sizes]


@pytest.mark.parametrize("execution", ["cpu", "device"])
def test_joined_cells_show_the_same_place(execution: str) -> None:
    """In an image whose red is its row and whose green is its column, mirrored or not."""
    rows, columns = np.mgrid[0:200, 0:240]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    maker = ViewMaker(PLAIN.replace(execution=execution), lambda side: (8, 8))
    mirrored, distances, random_distances = set(), [], []
    for number in range(20):
        plans = maker.draw(200, 240, sample_generator(0, 0, number))
        locations = [maker.locations([plan], view)[0] for view, plan in enumerate(plans)]
        views = show.rendered(maker, image, plans)
        pairs = matched_pairs(CriterionConfig(num_matches=[5, 5]), "location", *locations).tolist()
        assert len(pairs) == 5
        mirrored.add((plans[0].mirrored, plans[1].mirrored))
        for one, other in pairs:
            shown = []
            for view, cell in enumerate((one, other)):
                x, y = show.cell_centre(cell, maker, view)
                shown.append(views[view][int(y), int(x), :2].astype(float))
            distances.append(np.abs(shown[0] - shown[1]).max())
            random_distances.append(np.abs(shown[0] - views[1][32, 5, :2]).max())
    assert len(mirrored) == 4
    assert np.median(distances) < 10  # a cell is about 20 pixels wide
    assert np.median(random_distances) > 30


def test_sheet_of_views(folder_of_60: DataConfig, tmp_path: Path, capsys) -> None:
    out = tmp_path / "views.png"
    show.main([str(CONFIG), "--images", "2", "--out", str(out), *overrides(folder_of_60)])
    assert "2 images, 3 views each" in capsys.readouterr().out
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert (pixels == [255, 255, 0]).all(axis=1).sum() > 50  # the joined cells
    with pytest.raises(UserError, match="--images = 0"):
        show.main([str(CONFIG), "--images", "0"])
    with pytest.raises(UserError, match="unknown key"):
        show.main([str(CONFIG), "view.large_size=32"])


def test_bench_tells_parts_rates_and_the_limit(folder_of_60: DataConfig, capsys) -> None:
    options = ["--seconds", "0.2", "--workers", "0,1", "machine.worker_kind=threads"]
    bench.main([str(CONFIG), *options, *overrides(folder_of_60)])
    told = capsys.readouterr().out
    assert "2 x 32 + 1 x 16, execution cpu" in told
    assert "held in memory" in told
    for line in ("cut and resize", "mirror and colour", "in the training process", "0 workers", "1 workers", "limit: "):
        assert line in told
    with pytest.raises(UserError, match="--workers"):
        bench.main([str(CONFIG), "--workers", "two"])


def test_files_are_decoded_and_reduced_where_they_are_not_held(folder_of_60: DataConfig, monkeypatch) -> None:
    monkeypatch.setattr(bench, "open_store", lambda *arguments: OPEN_STORE(*arguments, memory_bytes=0))
    settings = show.load_config(str(CONFIG), [*overrides(folder_of_60), "views.short_side=20"])
    parts = bench.worker_parts(settings, bench.open_dataset(settings.data), show.view_maker(settings), 0.05)
    assert list(parts) == ["read the file", "decode", "reduce", "choose", "cut and resize", "mirror and colour"]
    assert all(value > 0 for value in parts.values())


OPEN_STORE = bench.open_store


@pytest.mark.parametrize(
    ("parts", "own", "rates", "named"),
    [
        ({"decode": 2.0, "cut and resize": 0.5}, 0.1, {0: 350, 2: 700}, r"mostly to decode .*data\.cache"),
        ({"decode": 0.2, "mirror and colour": 2.0}, 0.1, {2: 700}, r"views\.execution=device"),
        ({"decode": 2.0}, 1.5, {0: 300, 4: 600}, "the training process: .*667 images/s"),
    ],
)
def test_the_limit_is_named(parts: dict, own: float, rates: dict, named: str) -> None:
    assert re.search(named, bench.limit(parts, own, rates, cores=8))
    assert "all 2 cores" in bench.limit({"decode": 2.0}, 0.1, {2: 700}, cores=2)
