"""Criteria as a package of a user's own registers them; `imports=[own_criterion]` with this folder on Python's path."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from pretrain.criterion import register_criterion
from vicregl.criterion import VICRegLCriterion


class Predicted(nn.Module):
    """A predictor from one view to the other, as SimSiam's, and the variance over the batch of all processes."""

    def __init__(self, loss, embedding: int, channels: int, variance: float = 1.0) -> None:
        super().__init__()
        if variance < 0:
            raise ValueError(f"variance = {variance}")
        self.alpha, self.variance = loss.alpha, variance
        self.predictor = nn.Sequential(
            nn.Linear(embedding, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, embedding)
        )

    def forward(self, embeddings: list[Tensor], maps: list[Tensor], locations: list[Tensor]) -> dict[str, Tensor]:
        first, second = embeddings
        similarity = nn.functional.cosine_similarity(self.predictor(first), second.detach()).mean()
        spread = (1 - gathered(second).var(0).add(1e-4).sqrt()).relu().mean()
        local = (maps[0] - maps[1]).square().mean()
        loss = self.alpha * (self.variance * spread - similarity) + (1 - self.alpha) * local
        return {"loss": loss, "similarity": similarity, "spread": spread, "local": local}


def gathered(rows: Tensor) -> Tensor:
    return torch.cat(list(all_gather(rows))) if dist.is_initialized() and dist.get_world_size() > 1 else rows


class Drawn(nn.Module):
    """It draws a random number at each step."""

    def forward(self, embeddings: list[Tensor], maps: list[Tensor], locations: list[Tensor]) -> dict[str, Tensor]:
        number = torch.rand((), device=embeddings[0].device)
        return {"loss": number * embeddings[0].square().mean() + maps[0].square().mean(), "number": number}


register_criterion("predicted", Predicted)
register_criterion("published", lambda loss, embedding, channels: VICRegLCriterion(loss))
register_criterion("not_a_module", lambda loss, embedding, channels: "text")
register_criterion("drawn", lambda loss, embedding, channels: Drawn())
