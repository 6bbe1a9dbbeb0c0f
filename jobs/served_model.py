"""What MLflow runs when a registered model predicts: this file, the weights, and no pickle.

MLflow stores the file beside the weights and executes it when the model is loaded (its
"models from code"); it may import nothing but what is stored with it (fit_model) or pinned there.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fit_model import weights
from fit_model.bounded.config import BoundedConfig
from fit_model.bounded.engine import runner_of
from fit_model.canvas import canvas_of
from fit_model.choosing import DecodingConfig
from fit_model.course import Runner
from fit_model.groups import GroupBatch
from fit_model.heads import ClassifyConfig
from fit_model.samplers import SamplingConfig

PER_IMAGE = ("grid_rows", "grid_columns", "nodata")
SAMPLING: dict[str, Any] = {"diffusion": SamplingConfig, "autoregressive": DecodingConfig}


class ServedModel(mlflow.pyfunc.PythonModel):
    """Of models that predict: arrays of groups in, one row an image out, each class's probability
    or each target; with `groups_a_chunk` or `offload` in bounded memory. Of models that make
    images: rows of label and seed in, pixels out.
    """

    _skip_type_hint_validation = True  # the signature that is stored says more than hints can

    def load_context(self, context: Any) -> None:
        """Load the weights once."""
        self.model: Any = weights.load(Path(context.artifacts["weights"]).parent)

    # MLflow takes hints of predict for a schema, and knows none for arrays by name
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Predictions, or new images."""
        if self.model.config.head.kind == "generate":
            return self._make(model_input, dict(params or {}))
        given = {name: value for name, value in (params or {}).items() if value is not None}
        return self._predict(model_input, BoundedConfig(**given) if given else None)

    def _make(self, rows: pd.DataFrame, params: dict[str, Any]) -> NDArray:
        """All images of the call, as many at a time as fit: [image, height, width, bands]."""
        config = self.model.config
        grid = {name: params.pop(f"grid_{name}", None) for name in ("rows", "columns")}
        canvas = canvas_of(config, **grid)
        sampling = SAMPLING[config.face.kind](**params)
        targets = torch.tensor([self._class(name) for name in rows.get("label", [])])
        seeds = torch.tensor(rows["seed"].to_numpy())
        together = canvas.images_together(group_side_px=config.input.group_side_px)
        parts = []
        for start in range(0, len(rows), together):
            part = slice(start, start + together)
            with torch.inference_mode():
                groups = self.model.generate(
                    canvas.places(len(seeds[part])),
                    targets=targets[part] if config.head.classes else None,
                    seeds=seeds[part],
                    sampling=sampling,
                )
            parts.append(canvas.pictures(groups).numpy())
        return np.concatenate(parts)

    def _class(self, name: str) -> int:
        classes = self.model.config.head.classes
        if name not in classes:
            raise ValueError(f"no class {name!r}; the model's classes: {', '.join(classes)}")
        return classes.index(name)

    def _predict(
        self, model_input: dict[str, NDArray], bounded: BoundedConfig | None
    ) -> pd.DataFrame:
        """One image at a time, so that memory holds one; rows in the order of `image`."""
        head, runner = self.model.config.head, runner_of(bounded)
        names = head.classes if isinstance(head, ClassifyConfig) else head.targets
        rows = [
            self._predict_image(
                {name: array[chosen] for name, array in model_input.items()}, runner
            )
            for number in np.unique(model_input["image"])
            for chosen in [model_input["image"] == number]
        ]
        return pd.DataFrame(np.stack(rows).astype(np.float64), columns=list(names))

    def _predict_image(self, groups: dict[str, NDArray], runner: Runner) -> NDArray:
        groups = groups | {"image": np.zeros_like(groups["image"])}
        groups |= {name: groups[name][:1] for name in PER_IMAGE}
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in groups.items()
        }
        with torch.inference_mode():
            outputs = self.model(GroupBatch(**tensors, colours=None), runner=runner)
            return self.model.head.predictions(outputs)[0].float().numpy()


mlflow.models.set_model(ServedModel())
