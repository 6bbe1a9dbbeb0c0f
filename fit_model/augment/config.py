"""What chance may change about the images of a training."""

from dataclasses import dataclass
from typing import Literal

from fit_model import checks
from fit_model.augment.symmetries import SYMMETRIES


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Every image is changed anew in every epoch, all its groups alike; nothing by default.

    What an image becomes depends on the seed, the step and the image alone. Missing pixels stay
    missing. Colours change after the pixels have become floats, and nothing but stains is cut off.
    """

    symmetries: Literal["none", "mirror", "flips", "turns", "all"] = "none"
    """What an image may become, each as likely: "mirror" changes left and right, "flips" also top
    and bottom, "turns" makes quarter turns, "all" is every one of the eight."""
    crop_groups: tuple[int, int] | None = None
    """Rows and columns of groups that are cut out anywhere, before turning, and seen alone: no
    other group is read. Smaller images stay whole. Labels must be true of parts, too."""
    brightness: float = 0.0
    """Largest relative change of all pixels: 0.1 multiplies them by 0.9 to 1.1."""
    contrast: float = 0.0
    """Largest relative change of how far pixels lie from their band's mean over the dataset."""
    stain: float = 0.0
    """Largest change of haematoxylin, eosin and DAB in RGB of 8 bits: relative, and beside that in
    units of optical density. 0.05 is light, 0.2 strong (Tellez et al. 2019)."""
    band_scale: float = 0.0
    """As contrast, each band on its own."""
    band_shift: float = 0.0
    """Largest change that is added to a band, in its standard deviations."""

    def __post_init__(self) -> None:
        checks.one_of(SYMMETRIES, **{"augment.symmetries": self.symmetries})
        for name in ("brightness", "contrast", "stain", "band_scale"):
            checks.rate(**{f"augment.{name}": getattr(self, name)})
        checks.finite(**{"augment.band_shift": (self.band_shift,)})
        if self.band_shift < 0.0:
            raise ValueError(f"augment.band_shift is {self.band_shift}: it cannot be negative")
        for length in self.crop_groups or ():
            checks.positive(**{"augment.crop_groups": length})

    @property
    def turns(self) -> bool:
        """Whether rows may become columns."""
        return any(each.transposed for each in SYMMETRIES[self.symmetries])

    @property
    def colours(self) -> tuple[str, ...]:
        """The settings in effect that change colours."""
        names = ("brightness", "contrast", "stain", "band_scale", "band_shift")
        return tuple(name for name in names if getattr(self, name) > 0.0)

    @property
    def changes_nothing(self) -> bool:
        """Whether images are seen as they are stored."""
        return self.symmetries == "none" and self.crop_groups is None and not self.colours

    def most_groups(self, num_groups: int) -> int:
        """How many are seen, at most, of an image's stored groups."""
        if self.crop_groups is None:
            return num_groups
        rows, columns = self.crop_groups
        return min(num_groups, rows * columns)


UNCHANGED = AugmentConfig()
