"""What a user may decide about preprocessing; every config is checked when it is made."""

from dataclasses import dataclass, field
from typing import Literal

BACKGROUND_KINDS = ("nodata", "alpha", "glass", "mask")
ON_ERROR = ("quarantine", "quarantine_groups", "fail")
IF_EXISTS = ("refuse", "replace", "append")
CHANGED = ("refuse", "store_again")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class GroupingConfig:
    """How an image is cut: which level, which bands, how large a group."""

    group_side_px: int
    """Side of the square that becomes one group, in px of the chosen level."""
    patch_px: int = 16
    """The patch side training intends; only checked here: groups are stored as plain tiles."""
    level: int = 0
    """0 is full resolution; 1 the first overview, and so on."""
    mpp: float | None = None
    """Instead of `level`: the level of each image with so many microns per px."""
    resolution: float | None = None
    """Instead of `level`: the level of each image with px of so many units of its CRS (metres)."""
    spacing_tolerance: float = 0.1
    """How far the nearest level may be off, as a share; an image without one goes to quarantine."""
    bands: list[int] | None = None
    """Which bands to keep, counted from 1; None keeps all."""

    def __post_init__(self) -> None:
        if self.group_side_px < 1 or self.patch_px < 1:
            raise ValueError(
                f"group_side_px {self.group_side_px} and patch_px {self.patch_px} must be positive"
            )
        if self.group_side_px % self.patch_px:
            below = self.group_side_px // self.patch_px * self.patch_px
            near = below or self.patch_px
            raise ValueError(
                f"group_side_px {self.group_side_px} is no multiple of patch_px {self.patch_px}: "
                f"take {near}, or another patch"
            )
        self._check_level()
        if self.bands is not None and (
            not self.bands or min(self.bands) < 1 or len(set(self.bands)) < len(self.bands)
        ):
            raise ValueError(f"bands {self.bands}: give different numbers counted from 1")

    def _check_level(self) -> None:
        names = ("level", "mpp", "resolution")
        given = [name for name in names if getattr(self, name)]
        if len(given) > 1:
            told = ", ".join(f"{name} {getattr(self, name):g}" for name in given)
            raise ValueError(f"grouping has {told}: the level is chosen by one of them")
        if self.level < 0:
            raise ValueError(f"level {self.level} is negative: 0 is full resolution")
        for name in ("mpp", "resolution", "spacing_tolerance"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"grouping.{name} {value:g} must be more than 0")


@dataclass(frozen=True, kw_only=True)
class BackgroundConfig:
    """Which groups hold nothing worth storing."""

    leave_out: tuple[str, ...] = ("nodata",)
    """"nodata": every value missing. "alpha": transparent, by an alpha band or the mask inside the
    file. "glass": the bright, colourless background of a slide. "mask": what `masks` leave out."""
    masks: str | None = None
    """A folder with a mask for every image, of its name (its id) and of any size and raster format:
    it spans the same picture, and is not 0 in what to keep."""
    glass_saturation: float = 8 / 255
    """A cell of 8 x 8 px shows tissue above this HSV saturation ..."""
    glass_brightness: float = 0.8
    """... or below this HSV value (ink, pigment, dark artefacts stay)."""
    min_content_share: float = 0.01
    """A group with a smaller share of such cells is glass; of what to keep, it is masked."""

    def __post_init__(self) -> None:
        for kind in self.leave_out:
            if kind not in BACKGROUND_KINDS:
                raise ValueError(
                    f"background.leave_out {kind!r} is unknown: take {', '.join(BACKGROUND_KINDS)}"
                )
        if ("mask" in self.leave_out) != (self.masks is not None):
            raise ValueError(
                f"background.leave_out {list(self.leave_out)} with background.masks {self.masks}: "
                f"mask in the one and a folder as the other belong together"
            )
        for name in ("glass_saturation", "glass_brightness", "min_content_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"background.{name} {getattr(self, name)} lies outside 0 to 1")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Shares of the images in each split, used when the labels bring no split column."""

    train: float = 0.8
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(
                f"splits train {self.train}, validation {self.validation}, test {self.test} "
                f"must be at least 0 and add up to 1"
            )


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What a source may declare before it is taken for damaged or hostile."""

    max_side_px: int = 10_000_000
    max_gigapixels: float = 1_000.0
    max_bands: int = 4096
    max_tile_mb: int = 512
    """The largest tile or strip a source may hold: a decoder must keep all of one in memory."""
    max_expansion: float = 10_000.0
    """Bytes of pixels a byte of the file, for images that declare more than 1 GB of pixels."""
    max_download_gb: float = 100.0
    """The largest remote slide copied to the worker's disk (openslide reads local files only)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"limits.{name} {value} must be positive")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Everything one preprocessing job needs; credentials come from the environment only."""

    sources: str | list[str]
    """A folder (searched through), a list of files, or a CSV or Parquet table with `uri`."""
    output: str
    """A folder or s3://bucket/prefix."""
    grouping: GroupingConfig
    labels: str | None = None
    """CSV or Parquet: `image`, one or more label columns, and `split` if you have one."""
    class_labels: tuple[str, ...] = ()
    """Label columns of numbers that are names of classes, such as 0 and 1."""
    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    splits: SplitConfig = field(default_factory=SplitConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    on_error: Literal["quarantine", "quarantine_groups", "fail"] = "quarantine"
    """What cannot be read: its image is put aside, only the groups that fail, or the job ends."""
    max_bad_images: int | None = None
    """The job fails when more images than this are put aside; None has no limit."""
    max_bad_groups: int | None = None
    """The same for single groups of images that stay; counted with quarantine_groups alone."""
    if_exists: Literal["refuse", "replace", "append"] = "refuse"
    """A finished dataset at `output`: is in the way, is replaced by a new one when that is whole,
    or gets the images that are not in it; labels then name all images."""
    changed: Literal["refuse", "store_again"] = "refuse"
    """With append, an image whose source has another size or tag than the one that was stored."""
    shard_mb: int = 64

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty: name a folder, files or a table")
        if not self.output:
            raise ValueError("output is empty: name a folder or s3://bucket/prefix")
        if self.class_labels and self.labels is None:
            raise ValueError(
                f"class_labels {list(self.class_labels)} needs labels: name the table they are in"
            )
        self._check_quarantine()
        for name, known in {"if_exists": IF_EXISTS, "changed": CHANGED}.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown: take {', '.join(known)}"
                )
        if self.changed == "store_again" and self.if_exists != "append":
            raise ValueError(
                f"changed store_again needs if_exists=append: with {self.if_exists} every image "
                "is stored anew"
            )
        if not 1 <= self.shard_mb <= 2048:
            raise ValueError(f"shard_mb {self.shard_mb} lies outside 1 to 2048")

    def _check_quarantine(self) -> None:
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error {self.on_error!r} is unknown: take {', '.join(ON_ERROR)}")
        for name in ("max_bad_images", "max_bad_groups"):
            limit = getattr(self, name)
            if limit is not None and limit < 0:
                raise ValueError(f"{name} {limit} is negative: take 0 or more, or null")
        if self.max_bad_images is not None and self.on_error == "fail":
            raise ValueError(
                f"max_bad_images {self.max_bad_images} needs another on_error than fail, "
                "which ends at the first"
            )
        if self.max_bad_groups is not None and self.on_error != "quarantine_groups":
            raise ValueError(
                f"max_bad_groups {self.max_bad_groups} needs on_error=quarantine_groups: "
                f"with {self.on_error} no single group is put aside"
            )
