"""What a registered model takes and gives, as MLflow's schema and as plain arrays.

Every array has one entry a group, also those that describe the image (grid_rows, grid_columns,
nodata): MLflow's tensors share their first axis.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fit_model.groups import GroupBatch
from fit_model.heads import ClassifyConfig
from fit_model.models import ModelConfig

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

PLACES = ("image", "row", "column", "valid_height_px", "valid_width_px")
PER_IMAGE = {"grid_rows": np.int64, "grid_columns": np.int64, "nodata": np.float64}


def output_names(config: ModelConfig) -> tuple[str, ...]:
    """The columns of a prediction: classes (their probabilities) or targets."""
    head = config.head
    return head.classes if isinstance(head, ClassifyConfig) else head.targets


def signature_of(config: ModelConfig, *, pixel_dtype: str) -> "ModelSignature":
    """The schema MLflow checks predictions against; pixels come in the images' own dtype."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    side_px, bands = config.input.group_side_px, config.input.bands
    places = dict.fromkeys(PLACES, np.int64) | PER_IMAGE
    return ModelSignature(
        inputs=Schema(
            [
                TensorSpec(np.dtype(pixel_dtype), (-1, side_px, side_px, bands), "pixels"),
                *(TensorSpec(np.dtype(kind), (-1,), name) for name, kind in places.items()),
            ]
        ),
        outputs=Schema([ColSpec("double", name) for name in output_names(config)]),
    )


def arrays_of(batch: GroupBatch) -> dict[str, NDArray]:
    """A batch as the arrays a registered model predicts on."""
    own = {name: getattr(batch, name).numpy() for name in ("pixels", *PLACES)}
    return own | {name: getattr(batch, name)[batch.image].numpy() for name in PER_IMAGE}
