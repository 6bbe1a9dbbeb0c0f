"""LAMB in float64 NumPy, written from the formulas; one parameter at a time."""

from dataclasses import dataclass

import numpy as np


@dataclass
class NumpyLamb:
    """The weights of one parameter and what LAMB remembers of it."""

    weight: np.ndarray
    decay: float
    adapted: bool
    betas: tuple[float, float]
    eps: float

    def __post_init__(self) -> None:
        self.weight = np.asarray(self.weight, np.float64)
        self.gradients: list[np.ndarray] = []

    def step(self, gradient: np.ndarray, *, lr: float) -> None:
        """The moments as the weighted sums over all gradients so far that they are."""
        self.gradients.append(np.asarray(gradient, np.float64))
        steps = len(self.gradients)
        first, second = self.betas
        ages = range(steps - 1, -1, -1)
        pairs = list(zip(ages, self.gradients, strict=True))
        weights = [sum(beta**age for age in ages) for beta in self.betas]
        mean = sum(first**age * each for age, each in pairs) / weights[0]
        square = sum(second**age * each**2 for age, each in pairs) / weights[1]
        update = mean / (np.sqrt(square) + self.eps) + self.decay * self.weight
        size, length = np.linalg.norm(self.weight), np.linalg.norm(update)
        ratio = size / length if self.adapted and size > 0 and length > 0 else 1.0
        self.weight = self.weight - lr * ratio * update
