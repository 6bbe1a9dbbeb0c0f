"""Rotary position codes: queries and keys are turned by an angle that their position gives.

    pair (a, b) of channels (2i, 2i + 1) -> (a cos t - b sin t, a sin t + b cos t),  t = angle[n, i]

Turned queries and keys keep their lengths, and a score depends on the difference of two angles:
<R_s q, R_t k> = <q, R_(t-s) k>. Tokens before a grid (class tokens) are not turned; values never
are. Angles are computed in float64, so that they hold at long sequences, and the turning is done
in float32 at least.

Source: Su et al. 2021, arXiv:2104.09864; the 1-D code of Vision X-formers, arXiv:2107.02239; the
axial and mixed codes of Heo et al. 2024, arXiv:2403.13298.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fit_model.attention.operators import Operator
from fit_model.attention.place import Place
from fit_model.choices import read_choice

Angles = Float[Tensor, "#h n w"]


def rotate(x: Float[Tensor, " b #h n d"], angles: Angles) -> Float[Tensor, "b h n d"]:
    """Turn the neighbouring channels of x by one angle a pair; in the dtype of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angles.cos().to(wide), angles.sin().to(wide)
    first, second = x.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.flatten(-2).to(x.dtype)


class Rotary(nn.Module, ABC):
    """A rotary code; subclasses say which angles."""

    multiple: ClassVar[int]
    """What the width of a head is a multiple of."""

    def __init__(self, config: Any, *, width: int, heads: int, place: Place) -> None:
        super().__init__()
        self.kind, self.theta, self.place = config.kind, config.theta, place
        self.width = pairs_of(width, heads, multiple=self.multiple, operator=config.kind)

    @abstractmethod
    def angles(self, num_tokens: int, *, device: torch.device) -> Angles:
        """The angle of every pair of channels at the first `num_tokens` positions."""

    def forward(
        self, query: Float[Tensor, "b h q d"], key: Float[Tensor, " b #h k d"]
    ) -> tuple[Float[Tensor, "b h q d"], Float[Tensor, "b h2 k d"]]:
        """Queries and keys, turned; fewer queries than keys are the last of the positions."""
        angles = self.angles(key.shape[2], device=key.device)
        return rotate(query, angles[:, key.shape[2] - query.shape[2] :]), rotate(key, angles)


class RotatedOperator(nn.Module):
    """An attention operator whose queries and keys are turned first; an operator itself."""

    def __init__(self, attend: Operator, rotary: Rotary) -> None:
        super().__init__()
        self.attend = attend
        self.rotary = rotary

    def forward(
        self,
        query: Float[Tensor, "b h q d"],
        key: Float[Tensor, "b h k d"],
        value: Float[Tensor, "b h k e"],
        *,
        may_attend: Bool[Tensor, "#b #h #q k"] | None = None,
    ) -> Float[Tensor, "b h q e"]:
        """`attend` with turned queries and keys."""
        query, key = self.rotary(query, key)
        return self.attend(query, key, value, may_attend=may_attend)


def grid_positions(
    num_tokens: int, place: Place, *, operator: str, device: torch.device
) -> tuple[Float[Tensor, " {num_tokens}"], Float[Tensor, " {num_tokens}"]]:
    """Row and column of every token from 0, read row by row; both 0 for tokens before the grid."""
    rows, columns = place.raster(operator=operator)
    if num_tokens > place.prefix + rows * columns:
        raise ValueError(
            f"{operator}: {num_tokens} tokens do not fit into {place.prefix} tokens and a grid of "
            f"{rows} x {columns}; build it for the larger grid"
        )
    number = torch.arange(num_tokens, device=device) - place.prefix
    number = number.clamp(min=0).to(torch.float64)
    return number.div(columns, rounding_mode="floor"), number.remainder(columns)


def check_theta(theta: float) -> None:
    """ValueError for a base that gives no falling frequencies."""
    if not theta > 1.0:
        raise ValueError(f"theta is {theta}; the base of the frequencies is above 1, as 10000")


@dataclass(frozen=True, kw_only=True)
class Rotary1dConfig:
    """Settings of the 1-D code."""

    kind: Literal["rotary_1d"] = "rotary_1d"
    theta: float = 10000.0

    def __post_init__(self) -> None:
        check_theta(self.theta)


class Rotary1d(Rotary):
    """angle[n, i] = n * theta^(-2i / d): the place in the sequence, also when it shows a picture.

    The tokens before a grid all stand at 0 with the last of them, so with one class token the
    patch (r, c) of a grid stands at 1 + columns * r + c, as in ViX, and without any at its own
    number. In a raster, a vertical neighbour is a whole row away.
    """

    multiple = 2

    def angles(self, num_tokens: int, *, device: torch.device) -> Angles:
        """Position times frequency."""
        number = torch.arange(num_tokens, device=device, dtype=torch.float64)
        number = (number - max(self.place.prefix - 1, 0)).clamp(min=0.0)
        even = torch.arange(0, self.width, 2, device=device, dtype=torch.float64)
        return (number[:, None] * self.theta ** (-even / self.width))[None]


@dataclass(frozen=True, kw_only=True)
class RotaryAxialConfig:
    """Settings of the axial 2-D code."""

    kind: Literal["rotary_axial"] = "rotary_axial"
    theta: float = 100.0

    def __post_init__(self) -> None:
        check_theta(self.theta)


class RotaryAxial(Rotary):
    """angle[n] = [column f_0, column f_1, ..., row f_0, row f_1, ...], f_j = theta^(-4j / d).

    The first half of a head's channels turns with the column, the second with the row.
    """

    multiple = 4

    def __init__(self, config: RotaryAxialConfig, *, width: int, heads: int, place: Place) -> None:
        super().__init__(config, width=width, heads=heads, place=place)
        place.raster(operator=config.kind)

    def angles(self, num_tokens: int, *, device: torch.device) -> Angles:
        """Column and row, each times every frequency."""
        row, column = grid_positions(num_tokens, self.place, operator=self.kind, device=device)
        fourth = torch.arange(0, self.width, 4, device=device, dtype=torch.float64)
        frequency = self.theta ** (-fourth / self.width)
        return torch.cat([column[:, None] * frequency, row[:, None] * frequency], -1)[None]


@dataclass(frozen=True, kw_only=True)
class RotaryMixedConfig:
    """Settings of the mixed 2-D code; theta is that of the starting values."""

    kind: Literal["rotary_mixed"] = "rotary_mixed"
    theta: float = 10.0

    def __post_init__(self) -> None:
        check_theta(self.theta)


class RotaryMixed(Rotary):
    """angle[h, n, i] = column * frequencies[0, h, i] + row * frequencies[1, h, i], all learned.

    Frequencies start as directions of length theta^(-4j / d) in the plane, two at a right angle for
    every j, turned by one random angle a head. They see no weight decay.
    """

    multiple = 4

    def __init__(self, config: RotaryMixedConfig, *, width: int, heads: int, place: Place) -> None:
        super().__init__(config, width=width, heads=heads, place=place)
        place.raster(operator=config.kind)
        lengths = (config.theta ** (-torch.arange(0, self.width, 4) / self.width)).repeat(2)
        first = (torch.rand(heads, 1) * 2 * math.pi).expand(-1, self.width // 4)
        direction = torch.cat([first, first + math.pi / 2], -1)
        self.frequencies = nn.Parameter(
            torch.stack([lengths * direction.cos(), lengths * direction.sin()])
        )

    def angles(self, num_tokens: int, *, device: torch.device) -> Angles:
        """Column and row, each times its own frequency."""
        row, column = grid_positions(num_tokens, self.place, operator=self.kind, device=device)
        along_x, along_y = self.frequencies.double()[:, :, None]
        return column[:, None] * along_x + row[:, None] * along_y


def pairs_of(width: int, heads: int, *, multiple: int, operator: str) -> int:
    """The width of a head; ValueError when it does not fall into the pairs that a code turns."""
    if heads < 1 or width % heads or (width // heads) % multiple:
        raise ValueError(
            f"{operator} turns heads whose width is a multiple of {multiple}, not a width of "
            f"{width} in {heads} heads; choose other heads"
        )
    return width // heads


RotaryConfig = Rotary1dConfig | RotaryAxialConfig | RotaryMixedConfig
ROTARIES: dict[str, tuple[type[RotaryConfig], type[Rotary]]] = {
    "rotary_1d": (Rotary1dConfig, Rotary1d),
    "rotary_axial": (RotaryAxialConfig, RotaryAxial),
    "rotary_mixed": (RotaryMixedConfig, RotaryMixed),
}


def build_rotary(config: RotaryConfig, *, width: int, heads: int, place: Place) -> Rotary:
    """The rotary code of a config, for heads of width // heads channels."""
    return ROTARIES[config.kind][1](config, width=width, heads=heads, place=place)


def read_rotary(text: str, *, width: int, heads: int, setting: str) -> RotaryConfig | None:
    """The config that "rotary_axial@theta=100" stands for; None for "none".

    Raises ValueError that names `setting`, for what is no code and for heads it does not fit.
    """
    if text == "none":
        return None
    kinds = {name: kind for name, (kind, _) in ROTARIES.items()}
    config = read_choice(text, kinds, setting=setting, others=("none",))
    pairs_of(width, heads, multiple=ROTARIES[config.kind][1].multiple, operator=setting)
    return config
