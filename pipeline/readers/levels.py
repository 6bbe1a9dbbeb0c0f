"""Which level of an image's pyramid: by its number, or the one whose px are as large as wanted."""

import math

from pipeline.config import GroupingConfig
from pipeline.readers.protocol import ImageHeader, ImageReader, SourceError


def level_of(image: ImageReader, *, grouping: GroupingConfig) -> int:
    """The level that `grouping` means; `image` is open at that which it numbers, or at level 0.

    SourceError lists what there is where no level is near enough, or says that the file does not
    tell how large its px are.
    """
    if grouping.mpp is not None:
        base, wanted, unit = _microns(image.header), grouping.mpp, "microns"
    elif grouping.resolution is not None:
        base, wanted, unit = _on_the_ground(image.header), grouping.resolution, "CRS units"
    else:
        return grouping.level
    spacings = [base * down for down in image.downsamples]
    apart = [abs(math.log(spacing / wanted)) for spacing in spacings]
    level = apart.index(min(apart))
    if abs(spacings[level] / wanted - 1) > grouping.spacing_tolerance:
        listed = ", ".join(f"{spacing:.4g}" for spacing in spacings)
        raise SourceError(
            f"no level within {grouping.spacing_tolerance:.0%} of {wanted:g} {unit} per px: "
            f"its levels have {listed}"
        )
    return level


def _microns(header: ImageHeader) -> float:
    if header.mpp_x is None or header.mpp_y is None:
        raise SourceError("does not say its microns per px: choose by grouping.level")
    return math.sqrt(header.mpp_x * header.mpp_y)


def _on_the_ground(header: ImageHeader) -> float:
    """The side of a square as large as a px, in units of the CRS: metres, or degrees."""
    if header.crs is None or header.transform is None:
        raise SourceError("has no CRS, so no ground resolution: choose by grouping.level")
    a, b, _, d, e, _ = header.transform
    if not 0 < (area := abs(a * e - b * d)) < math.inf:
        raise SourceError("has a transform without area: choose by grouping.level")
    return math.sqrt(area)
