"""What a registered model takes and gives, as MLflow's schema and as plain arrays.

A model that predicts takes arrays with one entry a group, also those that describe the image
(grid_rows, grid_columns, nodata): MLflow's tensors share their first axis. A model that makes
images takes a row an image: its seed and, if the model knows classes, its label. What else they
can be told are MLflow's params: how much of an image is there at once, or how images are drawn.
"""

from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from fit_model.choosing import DecodingConfig
from fit_model.groups import GroupBatch
from fit_model.heads import ClassifyConfig, PredictConfig
from fit_model.model import ModelConfig
from fit_model.pixels import GenerateConfig
from fit_model.samplers import SamplingConfig
from fit_model.vix import VixConfig

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

PLACES = ("image", "row", "column", "valid_height_px", "valid_width_px")
PER_IMAGE = {"grid_rows": np.int64, "grid_columns": np.int64, "nodata": np.float64}
SAMPLING: dict[str, Any] = {"diffusion": SamplingConfig, "autoregressive": DecodingConfig}
CHUNKS: dict[str, tuple[str, Any]] = {"groups_a_chunk": ("long", None), "offload": ("string", None)}
"""Of BoundedConfig all but the folder, which is not for a caller to choose; None for all groups at
once."""
PARAM_TYPES = {str: "string", int: "long", float: "double"}


def output_names(head: PredictConfig) -> tuple[str, ...]:
    """The columns of a prediction: classes (their probabilities) or targets."""
    return head.classes if isinstance(head, ClassifyConfig) else head.targets


def signature_of(config: ModelConfig, *, pixel_dtype: str) -> "ModelSignature":
    """The schema MLflow checks predictions against; pixels come in the images' own dtype."""
    if isinstance(config.head, GenerateConfig):
        return _making_signature(config, config.head)
    return _predicting_signature(config, config.head, pixel_dtype=pixel_dtype)


def _predicting_signature(
    config: ModelConfig, head: PredictConfig, *, pixel_dtype: str
) -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    # ViX sees its images whole
    chunked = not isinstance(config.face, VixConfig)
    params = ParamSchema([ParamSpec(name, *param) for name, param in CHUNKS.items()])
    side_px, bands = config.input.group_side_px, config.input.bands
    places = dict.fromkeys(PLACES, np.int64) | PER_IMAGE
    return ModelSignature(
        inputs=Schema(
            [
                TensorSpec(np.dtype(pixel_dtype), (-1, side_px, side_px, bands), "pixels"),
                *(TensorSpec(np.dtype(kind), (-1,), name) for name, kind in places.items()),
            ]
        ),
        outputs=Schema([ColSpec("double", name) for name in output_names(head)]),
        params=params if chunked else None,
    )


def _making_signature(config: ModelConfig, head: GenerateConfig) -> "ModelSignature":
    """Rows of seeds and labels in, [image, height, width, bands] out, sampling as parameters."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    labels = [ColSpec("string", "label")] if head.classes else []
    pixels = TensorSpec(np.dtype(head.pixel_dtype), (-1, -1, -1, config.input.bands))
    params = sampling_params(config)
    return ModelSignature(
        inputs=Schema([*labels, ColSpec("long", "seed")]),
        outputs=Schema([pixels]),
        params=ParamSchema([ParamSpec(name, *param) for name, param in params.items()]),
    )


def sampling_params(config: ModelConfig) -> dict[str, tuple[str, Any]]:
    """MLflow's type and the default of everything that drawing an image can be told."""
    params: dict[str, tuple[str, Any]] = {
        "grid_rows": ("long", None),
        "grid_columns": ("long", None),
    }
    sampling = SAMPLING[config.face.kind]
    for name, hint in get_type_hints(sampling).items():
        kind = (*get_args(hint), hint)[0]  # of an optional one the first
        params[name] = PARAM_TYPES[kind], getattr(sampling, name)
    return params


def arrays_of(batch: GroupBatch) -> dict[str, NDArray]:
    """A batch as the arrays a registered model that predicts takes; stored pixels are read."""
    batch = batch.to("cpu")
    own = {name: getattr(batch, name).numpy() for name in ("pixels", *PLACES)}
    return own | {name: getattr(batch, name)[batch.image].numpy() for name in PER_IMAGE}
