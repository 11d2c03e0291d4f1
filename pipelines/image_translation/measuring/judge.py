"""Which of two looks a picture has: logistic regression on features of real pictures.

Choices made here:
- Features are brought to mean 0 and variance 1 over the pictures learned from, both looks together.
- What is minimised is the mean log loss plus L2/2 |w|^2 with L2 = 0.01, the bias left out; convex, so that L-BFGS in
  float64 from zero finds the same answer every time.
- Each look counts half, however many pictures it has.

N, M: pictures; C: features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["L2", "Judge"]

L2 = 1e-2
ROUNDS = 200


class Judge:
    """Tells look B from look A. `is_b` gives the answer for each picture, `accuracy` how often it is right."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        """Learns from features [N, C] of A and [M, C] of B."""
        both = torch.cat((a, b)).double()
        self.mean, self.std = both.mean(0), both.std(0).clamp(1e-6)
        self.weight = torch.zeros(both.shape[1], dtype=torch.float64, requires_grad=True)
        self.bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([self.weight, self.bias], max_iter=ROUNDS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            # softplus(z) is the log loss of an answer whose log odds are z the wrong way.
            found = (F.softplus(self(a)).mean() + F.softplus(-self(b)).mean()) / 2
            found = found + L2 / 2 * self.weight.square().sum()
            found.backward()
            return found

        with torch.enable_grad():
            optimizer.step(loss)
        self.weight, self.bias = self.weight.detach(), self.bias.detach()

    def __call__(self, features: Tensor) -> Tensor:
        """[N, C] -> [N]: the log odds of look B."""
        return (features.double() - self.mean) / self.std @ self.weight + self.bias

    def is_b(self, features: Tensor) -> Tensor:
        """[N, C] -> bool [N]."""
        return self(features) > 0

    def accuracy(self, a: Tensor, b: Tensor) -> float:
        """The share of real pictures told rightly; each look counts half."""
        return float((~self.is_b(a)).double().mean() + self.is_b(b).double().mean()) / 2
