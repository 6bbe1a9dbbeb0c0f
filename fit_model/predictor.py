"""A model with a head: what it learns, and what an evaluation wants to know of it."""

from typing import cast

from jaxtyping import Float, Int64
from torch import Tensor

from fit_model.course import WHOLE, Runner
from fit_model.groups import GroupBatch
from fit_model.heads import Head
from fit_model.model import Model
from fit_model.shapes import Outputs


class Predictor(Model):
    """A model with a head; its forward pass gives a row of outputs an image."""

    head: Head

    def losses(
        self,
        batch: GroupBatch,
        targets: Tensor | None,
        *,
        seeds: Int64[Tensor, " b"],
        runner: Runner = WHOLE,
    ) -> Float[Tensor, " b"]:
        """Cross-entropy in nats, or squared error in deviations."""
        return self.head.losses(self(batch, runner=runner), cast(Tensor, targets))

    def measures(
        self,
        batch: GroupBatch,
        targets: Tensor | None,
        *,
        seeds: Int64[Tensor, " b"],
        runner: Runner = WHOLE,
    ) -> Outputs:
        """The outputs themselves."""
        return self(batch, runner=runner)
