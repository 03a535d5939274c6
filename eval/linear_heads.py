"""Linear classifiers of one network's pooled features, trained and scored together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.features import choose_chunk


class LinearHeads(nn.Module):
    """k classifiers (classes, features) with the same start: weights N(0, 0.01), biases 0.

    The loss of each is the mean cross-entropy; the sum of the k losses has for each head exactly the gradient that it
    would have alone, because no weight is shared.
    """

    def __init__(self, features: int, classes: int, count: int, seed: int) -> None:
        super().__init__()
        start = 0.01 * torch.randn(classes, features, generator=torch.Generator().manual_seed(seed))
        self.weights = nn.ParameterList([start.clone() for _ in range(count)])
        self.biases = nn.ParameterList([torch.zeros(classes) for _ in range(count)])

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> logits (B, k, classes), in one product."""
        logits = F.linear(features, torch.cat(list(self.weights)), torch.cat(list(self.biases)))
        return logits.unflatten(1, (len(self.weights), -1))

    def losses(self, features: Tensor, labels: Tensor, size: int | None = None) -> Tensor:
        """Return each head's cross-entropy (k,) of (B, F), (B,): the sum over samples by `size`, or by their number.

        `size` is that of a batch of which these samples are a part.
        """
        logits = self(features)
        batch, count, _ = logits.shape
        each = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(count), reduction="none")
        return each.view(batch, count).sum(0) / (size or batch)

    def parameter_groups(self, learning_rates: Sequence[float]) -> list[dict[str, object]]:
        """Return one optimiser group a head; `initial_lr` is what the schedule multiplies."""
        heads = zip(self.weights, self.biases, learning_rates, strict=True)
        return [{"params": [weight, bias], "lr": rate, "initial_lr": rate} for weight, bias, rate in heads]

    @torch.no_grad()
    def accuracy(self, features: Tensor, labels: Tensor, batch_size: int = 8192) -> Tensor:
        """Score (N, F), (N,) -> (k, 2): top-1 and top-5 in percent; NaN for a head that diverged.

        With five classes or fewer, top-5 is 100 by definition. At most `batch_size` samples are scored at a time.
        """
        room = choose_chunk(features.device) // (4 * len(self.weights) * len(self.biases[0]))
        batch_size = min(batch_size, max(1, room))
        correct = torch.zeros(len(self.weights), 2, dtype=torch.float64, device=features.device)
        for batch, truth in zip(features.split(batch_size), labels.split(batch_size), strict=True):
            logits = self(batch)
            ranked = logits.topk(min(5, logits.shape[2]), dim=2).indices  # (B, k, 5)
            hits = ranked == truth[:, None, None]
            correct += torch.stack([hits[:, :, 0].sum(0), hits.any(2).sum(0)], dim=1)
        percent = 100 * correct.cpu() / len(labels)
        # A head of NaN predicts class 0 always, which would be a score.
        diverged = [not weight.isfinite().all() for weight in self.weights]
        percent[torch.tensor(diverged)] = torch.nan
        return percent
