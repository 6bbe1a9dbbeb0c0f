"""Heads for whole images: one class of several, or several numbers.

    output = LayerNorm(mean over the image's latents or data tokens) W + b

Source: ours; the official encoder has no head of its own. The mean is kept in float32.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from fit_model import checks
from fit_model.course import Sums
from fit_model.layers import dense, layer_norm
from fit_model.shapes import DataTokens, Latents, Outputs, ValidTokens

Pool = Literal["latents", "tokens"]
POOLS = ("latents", "tokens")


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """One class an image."""

    kind: Literal["classify"] = "classify"
    target: str = "label"
    """What the classes are classes of."""
    classes: tuple[str, ...]
    pool: Pool = "latents"

    def __post_init__(self) -> None:
        checks.one_of(("classify",), kind=self.kind)
        checks.one_of(POOLS, pool=self.pool)
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes is {self.classes}: name at least two, each once")

    @property
    def num_outputs(self) -> int:
        """One logit a class."""
        return len(self.classes)


@dataclass(frozen=True, kw_only=True)
class RegressConfig:
    """Some numbers an image; the model works with (target - mean) / std."""

    kind: Literal["regress"] = "regress"
    targets: tuple[str, ...]
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]
    pool: Pool = "latents"

    def __post_init__(self) -> None:
        checks.one_of(("regress",), kind=self.kind)
        checks.one_of(POOLS, pool=self.pool)
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets is {self.targets}: name at least one, each once")
        for name, values in (("target_mean", self.target_mean), ("target_std", self.target_std)):
            if len(values) != len(self.targets):
                raise ValueError(f"{name} has {len(values)} values for {len(self.targets)} targets")
        checks.finite(target_mean=self.target_mean, target_std=self.target_std)
        if min(self.target_std) <= 0:
            raise ValueError(f"target_std holds {min(self.target_std)}: a deviation is above 0")

    @property
    def num_outputs(self) -> int:
        """One number a target."""
        return len(self.targets)


PredictConfig = ClassifyConfig | RegressConfig


class Head(nn.Module):
    """Mean over an image, LayerNorm, linear; what outputs mean is up to the kind of head."""

    def __init__(self, *, pool: Pool, width: int, num_outputs: int) -> None:
        super().__init__()
        self.pool = pool
        self.norm = layer_norm(width)
        self.project = dense(width, num_outputs)

    def forward(self, sums: Float[Tensor, "b z"]) -> Outputs:
        """One row of outputs an image, in float32 at least, of what its groups add up to."""
        return self.outputs((sums[:, :-1] / sums[:, -1:]).to(self.norm.weight.dtype))

    def outputs(self, pooled: Float[Tensor, "b e"]) -> Outputs:
        """The same from what is known of each image."""
        outputs = self.project(self.norm(pooled))
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    @abstractmethod
    def losses(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, " b"]:
        """One loss an image."""

    def loss(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, ""]:
        """Mean over the images."""
        return self.losses(outputs, targets).mean()

    @abstractmethod
    def predictions(self, outputs: Outputs) -> Outputs:
        """What a user asked for, in the user's units."""


class ClassifyHead(Head):
    """Outputs are logits."""

    def __init__(self, config: ClassifyConfig, *, width: int) -> None:
        super().__init__(pool=config.pool, width=width, num_outputs=config.num_outputs)

    def losses(self, outputs: Outputs, targets: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Cross-entropy in nats; targets are class numbers."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def predictions(self, outputs: Outputs) -> Outputs:
        """The probability of each class."""
        return outputs.softmax(-1)


class RegressHead(Head):
    """Outputs are (target - mean) / std."""

    def __init__(self, config: RegressConfig, *, width: int) -> None:
        super().__init__(pool=config.pool, width=width, num_outputs=config.num_outputs)
        self.target_mean, self.target_std = config.target_mean, config.target_std

    def losses(self, outputs: Outputs, targets: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """Squared error in units of each target's deviation; targets come in their own units."""
        # Centred in the targets' own precision: float32 would round large offsets away.
        mean, std = targets.new_tensor(self.target_mean), targets.new_tensor(self.target_std)
        return (outputs - ((targets - mean) / std).to(outputs.dtype)).square().mean(-1)

    def predictions(self, outputs: Outputs) -> Outputs:
        """Each target in its own units."""
        return outputs * outputs.new_tensor(self.target_std) + outputs.new_tensor(self.target_mean)


HEADS: dict[str, Callable[..., Head]] = {"classify": ClassifyHead, "regress": RegressHead}


def build_head(config: PredictConfig, *, width: int) -> Head:
    """The head that `config` says, on means of `width` channels."""
    return HEADS[config.kind](config, width=width)


def summed(stream: DataTokens | Latents, valid: ValidTokens | None) -> Sums:
    """What each group adds to the mean over its image: its valid rows, and how many they are."""
    exact = torch.promote_types(stream.dtype, torch.float32)
    counted = torch.ones(stream.shape[:2], dtype=exact, device=stream.device)
    if valid is not None:
        counted = valid.to(exact)
        stream = torch.where(valid[..., None], stream, 0.0)
    return torch.cat([stream.sum(1, dtype=exact), counted.sum(1, keepdim=True)], 1)
