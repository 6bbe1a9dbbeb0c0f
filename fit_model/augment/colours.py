"""Other colours for whole images: brightness, contrast, bands, and stains of tissue.

    density = -ln((pixel + 1) / 256)                   of RGB; one level more, since black has none
    stains  = density STAINS^-1                        haematoxylin, eosin, DAB
    pixel   = 256 exp(-(stain_scale stains + stain_shift) STAINS) - 1,   cut off at 0 and 255
    value   = scale (brightness pixel - mean) / std + shift

Every image has numbers of its own, which are the same for all its groups.
Source: stains after Tellez et al. 2018, doi:10.1109/TMI.2018.2820199, and 2019, arXiv:1902.06543;
their colours from Ruifrok & Johnston 2001, as scikit-image has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from fit_model.augment.config import AugmentConfig
from fit_model.shapes import PerGroup

STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""How much red, green and blue is absorbed by haematoxylin, by eosin, by DAB."""

Squares = Float[Tensor, "g side side bands"]


@dataclass(frozen=True, kw_only=True)
class Colours:
    """What is done to the colours of images, a row an image."""

    brightness: Float64[Tensor, "b 1"]
    scale: Float64[Tensor, "b bands"]
    shift: Float64[Tensor, "b bands"]
    density_mix: Float64[Tensor, "b stained stained"]
    """What optical densities are multiplied by from the right; 0 x 0 where stains stay."""
    density_shift: Float64[Tensor, "b stained"]
    """What is added to them."""

    def __len__(self) -> int:
        return len(self.brightness)

    def __getitem__(self, images: slice | PerGroup) -> "Colours":
        """Those of these images, or a row a group."""
        return Colours(**{each.name: getattr(self, each.name)[images] for each in fields(self)})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Colours":
        """The same numbers on another device."""
        return Colours(
            **{
                each.name: getattr(self, each.name).to(device, non_blocking=non_blocking)
                for each in fields(self)
            }
        )

    def pixels(self, pixels: Squares) -> Squares:
        """Pixels in other stains and another light; a row of self a group."""
        if self.density_shift.shape[1]:
            pixels = self._stained(pixels)
        return pixels * spread(self.brightness, pixels)

    def values(self, values: Squares) -> Squares:
        """Normalised pixels, scaled and shifted; a row of self a group."""
        return torch.addcmul(spread(self.shift, values), values, spread(self.scale, values))

    def _stained(self, pixels: Squares) -> Squares:
        logs = ((pixels + 1.0) / 256.0).log_().flatten(1, 2)
        shift, mix = self.density_shift.to(logs.dtype), self.density_mix.to(logs.dtype)
        # mixed precision would round the product
        with torch.autocast(pixels.device.type, enabled=False):
            changed = torch.baddbmm(-shift[:, None], logs, mix)
        return changed.exp_().mul_(256.0).sub_(1.0).clamp_(0.0, 255.0).view_as(pixels)


def spread(rows: Float64[Tensor, "g _"], pixels: Squares) -> Float[Tensor, "g 1 1 _"]:
    """A row a group, for all its pixels."""
    return rows.to(pixels.dtype)[:, None, None, :]


def joined_colours(parts: Sequence[Colours | None]) -> Colours | None:
    """Those of all images of several batches; None where they keep their colours."""
    kept = [each for each in parts if each is not None]
    if not kept:
        return None
    if len(kept) < len(parts):
        raise ValueError("images with other colours and images without cannot share a batch")
    return Colours(
        **{
            each.name: torch.cat([getattr(one, each.name) for one in kept])
            for each in fields(Colours)
        }
    )


def colours_of(
    config: AugmentConfig, *, bands: int, chances: Float64[Tensor, " _"]
) -> Colours | None:
    """Of one image, by 8 + 2 bands numbers from 0 to 1; None where the settings change none."""
    if not config.colours:
        return None
    light, contrast, more, added, scales, shifts = (2.0 * chances[None] - 1.0).split(
        [1, 1, 3, 3, bands, bands], dim=1
    )
    stains = [(1.0 + config.stain * more[0]).tolist(), (config.stain * added[0]).tolist()]
    mix, moved = density_change(*stains) if config.stain > 0.0 else (np.eye(0), np.zeros(0))
    return Colours(
        brightness=1.0 + config.brightness * light,
        scale=(1.0 + config.contrast * contrast) * (1.0 + config.band_scale * scales),
        shift=config.band_shift * shifts,
        density_mix=torch.from_numpy(mix)[None],
        density_shift=torch.from_numpy(moved)[None],
    )


def density_change(
    scale: Sequence[float], shift: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a scale and a shift of each stain make of optical densities: a matrix, and a shift."""
    stains = np.array(STAINS)
    return np.linalg.inv(stains) @ np.diag(scale) @ stains, np.array(shift) @ stains
