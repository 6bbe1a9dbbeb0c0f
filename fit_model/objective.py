"""A model as a training engine calls it: batch in, losses out."""

from jaxtyping import Float, Int64
from torch import Tensor, nn

from fit_model.groups import GroupBatch
from fit_model.model import Model

PREFIX = "model."
"""What the names of the model's weights begin with in the objective's state dict."""


class Objective(nn.Module):
    """The losses of a model as its forward pass; engines hook into nothing else."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: GroupBatch, targets: Tensor | None, seeds: Int64[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """One loss an image."""
        return self.model.losses(batch, targets, seeds=seeds)
