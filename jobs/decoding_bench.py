"""Drawing images from an autoregressive model with caches, beside running all of it every time.

Run      farreach bench decoding [key=value ...]
Takes    4 to 15 minutes on one core; 10 s with plain_places=60

The caches draw the images. The plain decoder is then asked, for one sub-pixel after another, what
follows what was drawn before it; if every answer is the level that was drawn, drawing without
caches would have given the same images.
"""

import time
from dataclasses import dataclass, field
from typing import Literal

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fit_model import checks
from fit_model.autoregressive import AutoregressiveConfig, Decoder
from fit_model.choosing import DecodingConfig, choose, uniforms
from fit_model.decoding import Plain, decode
from fit_model.groups import Places
from fit_model.trunk_config import TrunkConfig
from jobs.errors import MachineFault

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class DecodingBench:
    """The images, the model, and how much of the plain way is run."""

    side_px: int = 32
    bands: int = 3
    patch_px: int = 8
    images: int = 1
    """Drawn together."""
    layers: str = "(2)2(2)"
    width: int = 64
    latents_per_group: int = 8
    heads: int = 4
    num_levels: int = 256
    dtype: Literal["float32", "float64"] = "float32"
    plain_places: int | None = None
    """Ask the plain decoder at so many places, spread evenly over the sequence, and scale its time;
    None asks at every place."""
    sampling: DecodingConfig = field(default_factory=DecodingConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        checks.positive(side_px=self.side_px, bands=self.bands, images=self.images)
        checks.positive(patch_px=self.patch_px)
        if self.plain_places is not None:
            checks.positive(plain_places=self.plain_places)
        if self.side_px % self.patch_px:
            raise ValueError(f"side_px {self.side_px} is no multiple of patch_px {self.patch_px}")
        if self.sampling.guidance:
            raise ValueError(
                f"guidance is {self.sampling.guidance:g}, and this model knows no labels: "
                "leave it at 0"
            )

    @property
    def num_tokens(self) -> int:
        """Sub-pixels of a patch."""
        return self.patch_px**2 * self.bands

    @property
    def num_patches(self) -> int:
        """Of an image."""
        return (self.side_px // self.patch_px) ** 2


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of it."""

    cached_s: float
    plain_s: float
    """Scaled to all sub-pixels."""
    asked: int
    """Levels that both ways chose."""
    equal: int


def main(config: DecodingBench) -> None:
    """Draw, ask again, print the table; MachineFault where a level differs."""
    found = measure(config)
    show(found, config, Console(highlight=False))
    if found.equal < found.asked:
        raise MachineFault(
            f"{found.asked - found.equal} of {found.asked} levels differ between the two ways"
        )


def measure(config: DecodingBench) -> Measured:
    """Both ways, timed and compared."""
    decoder = strong_decoder(config).to(DTYPES[config.dtype]).eval()
    places = Places.in_one_row(
        num_images=config.images, num_groups=config.num_patches, device=torch.device("cpu")
    )
    seeds = config.seed + torch.arange(config.images)
    started_s = time.perf_counter()
    levels = decode(
        decoder,
        places,
        num_tokens=config.num_tokens,
        classes=None,
        seeds=seeds,
        config=config.sampling,
    )
    cached_s = time.perf_counter() - started_s
    drawn = levels.view(config.images, -1)
    uniform = uniforms(seeds, count=drawn.shape[1])
    asked = asked_places(drawn.shape[1], config.plain_places)
    plain = Plain(decoder, places, classes=None, num_tokens=config.num_tokens)
    plain_s, equal = 0.0, 0
    for place in track(asked, description="without caches", transient=True):
        started_s = time.perf_counter()
        level = plain_level(plain, drawn, uniform, place=place, sampling=config.sampling)
        plain_s += time.perf_counter() - started_s
        equal += int((level == drawn[:, place]).sum())
    return Measured(
        cached_s=cached_s,
        plain_s=plain_s * drawn.shape[1] / len(asked),
        asked=len(asked) * config.images,
        equal=equal,
    )


def strong_decoder(config: DecodingBench) -> Decoder:
    """A decoder with weights far from their start, where all levels would be about as likely and
    hardly depend on what came before.
    """
    torch.manual_seed(config.seed)
    trunk = TrunkConfig(
        layers=config.layers,
        width=config.width,
        latent_width=config.width,
        latents_per_group=config.latents_per_group,
        heads=config.heads,
        latent_heads=config.heads,
    )
    face = AutoregressiveConfig(patch_px=config.patch_px, trunk=trunk, num_levels=config.num_levels)
    decoder = Decoder(face, num_tokens=config.num_tokens)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return decoder


def asked_places(length: int, count: int | None) -> list[int]:
    """Where the plain decoder is asked, from the first to the last place."""
    if count is None or count >= length:
        return list(range(length))
    return torch.linspace(0, length - 1, count).round().long().tolist()


@torch.no_grad()
def plain_level(
    plain: Plain, drawn: Tensor, uniform: Tensor, *, place: int, sampling: DecodingConfig
) -> Tensor:
    """The level of every image at a place, after what was drawn before it and nothing else."""
    inputs = torch.zeros_like(drawn)
    inputs[:, 1 : place + 1] = drawn[:, :place]
    return choose(plain.logits(inputs, place), uniform[:, place], config=sampling)


def show(found: Measured, config: DecodingBench, console: Console) -> None:
    """Both times, and whether the levels are the same."""
    count = config.num_patches * config.num_tokens
    console.print(
        f"{config.images} x {count:,} sub-pixels, {config.layers} of width {config.width}, "
        f"{config.dtype}, torch threads: {torch.get_num_threads()}"
    )
    table = Table()
    table.add_column("drawn")
    for name in ("seconds", "ms a sub-pixel", "times as fast"):
        table.add_column(name, justify="right")
    for way, seconds in (("without caches", found.plain_s), ("with caches", found.cached_s)):
        faster = found.plain_s / seconds
        table.add_row(way, f"{seconds:.1f}", f"{seconds / count * 1e3:.2f}", f"{faster:.1f}")
    console.print(table)
    console.print(f"equal levels: {found.equal:,} of {found.asked:,} compared")
    if found.asked < config.images * count:
        places = found.asked // config.images
        console.print(f"time without caches: scaled from {places:,} places, spread evenly")
