"""The page's example runs in somebody else's loop, and its figures are those of the code."""

import re
from pathlib import Path

import torch
from torch import nn

from vicregl.config import CriterionConfig

README = (Path(__file__).resolve().parents[2] / "vicregl" / "README.md").read_text()


class SomebodysNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        self.head, self.local_head = nn.Linear(8, 16), nn.Linear(8, 12)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = self.trunk(images).flatten(2).transpose(1, 2)
        return self.head(positions.mean(1)), self.local_head(positions)


def test_the_example() -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line]) == 5
    network = SomebodysNetwork()
    names = {
        "network": network,
        "views": [torch.randn(4, 3, side, side) for side in (32, 32, 16)],
        "locations": [100 * torch.rand(4, p, 2) for p in (64, 64, 16)],
    }
    exec(code, names)
    assert names["loss"] > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_every_option_is_on_the_page() -> None:
    table = README[README.index("## Options") : README.index("## Numerics")]
    for option in CriterionConfig.__dataclass_fields__:
        name = "*_coefficient" if option.endswith("_coefficient") else option
        assert f"`{name}`" in table, option


def test_the_files_are_those_of_the_folder() -> None:
    files = {path.name for path in (Path(__file__).resolve().parents[2] / "vicregl").glob("*.py")}
    table = README[: README.index("## The criterion in another")]
    assert set(re.findall(r"`(\w+\.py)`", table)) == files - {"__init__.py"}


def test_megabytes_of_several_processes() -> None:
    c, positions, published_slots = 512, 2 * 49, 2 * 2 * (49 + 49 + 20 + 4)
    reference, paper = 2 * (49 + 49 + 2 * (20 + 4)), 2 * 4 * 20
    for n in (512, 2048):
        row = next(line for line in README.splitlines() if line.startswith(f"| {n} |"))
        actual = [int(figure) for figure in re.findall(r"(\d+) MB", row)]
        expected = [4 * published_slots * n * c]
        for slots in (reference, paper):
            expected.append(4 * n * (positions * c + slots) if n <= c else 4 * slots * (c + c * c))
        assert actual == [round(number / 1e6) for number in expected]
