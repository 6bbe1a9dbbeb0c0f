"""What chance changes about the images of a training: what is read for it, and what is refused."""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from fit_model.augment.config import AugmentConfig
from fit_model.augment.views import View, draw_view, require_views
from fit_model.canvas import known_groups
from fit_model.model import ModelConfig
from fit_model.pixels import GenerateConfig
from fit_model.vix import VixConfig
from jobs.sharing import Seat
from jobs.targets import HeadConfig
from pipeline.dataset import Dataset, ImageGroups, ImageRecord


def draw_views(
    records: Sequence[ImageRecord], seeds: Sequence[int], *, config: AugmentConfig, seat: Seat
) -> list[View] | None:
    """What is seen of these images, whoever holds their groups; None where nothing changes."""
    if config.changes_nothing:
        return None
    return [
        draw_view(
            record.groups,
            rows=record.grid_rows,
            columns=record.grid_columns,
            bands=record.bands,
            config=config,
            seed=seed,
            num_workers=seat.groups,
            unit=seat.unit,
        )
        for record, seed in zip(records, seeds, strict=True)
    ]


def read_seen(dataset: Dataset, record: ImageRecord, stored: Sequence[int]) -> ImageGroups:
    """These of the image's stored groups in the order in which they are stored.

    Cost: one range for each run of neighbours.
    """
    wanted = np.sort(np.asarray(stored))
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
    parts = [dataset.read(record, groups=slice(run[0], run[-1] + 1)) for run in runs]
    columns = [each.name for each in fields(ImageGroups) if each.name != "pixels"]
    return ImageGroups(
        pixels=[square for part in parts for square in part.pixels],
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns},
    )


def head_of_views(head: HeadConfig, *, config: AugmentConfig) -> HeadConfig:
    """A model that is shown crops makes images of their size unless asked for another."""
    if config.crop_groups is None or not isinstance(head, GenerateConfig):
        return head
    rows, columns = config.crop_groups
    return replace(
        head,
        grid_rows=min(head.grid_rows, rows),
        grid_columns=min(head.grid_columns, columns),
    )


def require_augmentable(
    config: AugmentConfig,
    *,
    model: ModelConfig,
    records: Sequence[ImageRecord],
    side_px: int,
    seat: Seat,
) -> None:
    """Refuse changes that the model cannot take, or that leave a worker without groups."""
    _require_colours(config, model=model, records=records)
    fixed = known_groups(model) is not None
    if fixed and config.crop_groups is not None:
        raise ValueError(
            f"augment.crop_groups {list(config.crop_groups)} changes the grid of groups, and this "
            "model is made for one: leave it out, or take a model for any grid (kind 'encoder' "
            "with latent_position 'coordinate' and group_token 'none')"
        )
    for record in records:
        if fixed and config.turns and record.grid_rows != record.grid_columns:
            raise ValueError(
                f"augment.symmetries {config.symmetries!r} turns image {record.image_id!r} of "
                f"{record.grid_rows} x {record.grid_columns} groups on its side, and this model is "
                "made for one grid: take 'flips'"
            )
        ragged = record.height_px % side_px or record.width_px % side_px
        if isinstance(model.face, VixConfig) and config.symmetries != "none" and ragged:
            raise ValueError(
                f"augment.symmetries {config.symmetries!r} would leave a gap in image "
                f"{record.image_id!r} for a model of kind 'vix': groups of {side_px} px do not "
                f"divide {record.height_px} x {record.width_px} px; take 'none'"
            )
        try:
            require_views(
                record.groups,
                rows=record.grid_rows,
                columns=record.grid_columns,
                config=config,
                num_workers=seat.groups,
                unit=seat.unit,
            )
        except ValueError as error:
            raise ValueError(f"image {record.image_id!r}: {error}") from error


def _require_colours(
    config: AugmentConfig, *, model: ModelConfig, records: Sequence[ImageRecord]
) -> None:
    if config.colours and isinstance(model.head, GenerateConfig):
        raise ValueError(
            f"augment.{config.colours[0]} changes colours, and a model that makes images would "
            "learn to make those: leave it at 0"
        )
    for record in records if config.stain > 0.0 else ():
        if (record.bands, record.dtype) != (3, "uint8"):
            raise ValueError(
                f"augment.stain is for 3 bands of uint8, and image {record.image_id!r} has "
                f"{record.bands} of {record.dtype}: take augment.band_scale and augment.band_shift"
            )
