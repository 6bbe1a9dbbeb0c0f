"""A model as a training engine calls it: batch in, losses out."""

from jaxtyping import Float, Int64
from torch import Tensor, nn

from fit_model.bounded.config import BoundedConfig
from fit_model.bounded.engine import runner_of
from fit_model.crew import ALONE, Crew
from fit_model.groups import GroupBatch
from fit_model.model import Model

PREFIX = "model."
"""What the names of the model's weights begin with in the objective's state dict."""


class Objective(nn.Module):
    """The losses of a model as its forward pass; engines hook into nothing else.

    Args:
        model: whose losses these are.
        bounded: how many groups are there at once; None for all.
        crew: who holds the images' other groups.
    """

    def __init__(
        self, model: Model, *, bounded: BoundedConfig | None = None, crew: Crew = ALONE
    ) -> None:
        super().__init__()
        self.model = model
        self.runner = runner_of(bounded, crew=crew)

    def forward(
        self, batch: GroupBatch, targets: Tensor | None, seeds: Int64[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """One loss an image."""
        return self.model.losses(batch, targets, seeds=seeds, runner=self.runner)
