"""Where a token stands in its group and a group in its image: tables, sin-cos codes, coordinates.

Data tokens get one position table that all groups share; which group it is, they learn from their
latents. Latents get theirs as their starting value. Every table is a small module of its own that
is called, so that sharded parameters are gathered when it runs.

    sin-cos code of x: [sin(x w_0), sin(x w_1), ..., cos(x w_0), cos(x w_1), ...],
                       w_i = 10000^(-2i / width)
    2-D code of (y, x): [code of y | code of x], half of the channels each

The codes of the official model ("sin_cos", "sin_cos_2d") spread their coordinates evenly over
[0, 1000]; "coordinate" is ours and counts groups, so that it means the same in any grid.
Source: google-research/pix2seq, architectures/transformers.py; facts of Chen & Li 2023,
arXiv:2305.12689.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fit_model import checks
from fit_model.groups import Places
from fit_model.shapes import DataTokens, Latents

SPREAD = 1000.0
TABLE_STD = 0.02


def table(*shape: int) -> nn.Parameter:
    """A learned table, normal with standard deviation 0.02, cut at two deviations."""
    parameter = nn.Parameter(torch.empty(*shape))
    nn.init.trunc_normal_(parameter, std=TABLE_STD, a=-2 * TABLE_STD, b=2 * TABLE_STD)
    return parameter


def sin_cos(coordinates: Float[Tensor, "*p"], *, width: int) -> Float[Tensor, "*p {width}"]:
    """The 1-D code: all sines first, then all cosines; the sines have the odd channel."""
    even = torch.arange(0, width, 2, device=coordinates.device, dtype=torch.float32)
    angles = coordinates[..., None] * (1.0 / torch.pow(10000.0, even / width))
    return torch.cat([angles.sin(), angles[..., : width // 2].cos()], -1)


def sin_cos_2d(
    y: Float[Tensor, "*p"], x: Float[Tensor, "*p"], *, width: int
) -> Float[Tensor, "*p {width}"]:
    """The 2-D code: y in the first half of the channels, x in the second."""
    return torch.cat([sin_cos(y, width=width // 2), sin_cos(x, width=width // 2)], -1)


def spread(count: int, *, device: torch.device) -> Float[Tensor, " {count}"]:
    """`count` coordinates evenly over [0, 1000]; a single one is 0."""
    numbers = torch.arange(count, device=device, dtype=torch.float32)
    return numbers / max(count - 1, 1) * SPREAD


def grid_code(
    rows: int, columns: int, *, width: int, device: torch.device
) -> Float[Tensor, "{rows*columns} {width}"]:
    """The code of a grid's points, row by row; a grid of one row or column has the 1-D code."""
    if rows == 1 or columns == 1:
        return sin_cos(spread(rows * columns, device=device), width=width)
    y, x = spread(rows, device=device), spread(columns, device=device)
    return sin_cos_2d(y.repeat_interleave(columns), x.repeat(rows), width=width)


class LearnedTokens(nn.Module):
    """Token n of every group gets row n of one learned table."""

    def __init__(self, *, num_tokens: int, width: int) -> None:
        super().__init__()
        self.table = table(num_tokens, width)

    def forward(self, tokens: DataTokens) -> DataTokens:
        """Tokens with their positions added."""
        return tokens + self.table


class SinCosTokens(nn.Module):
    """Token n of every group gets the 1-D code of n."""

    def __init__(self, *, num_tokens: int, width: int) -> None:
        super().__init__()
        self.rows, self.columns = num_tokens, 1

    def forward(self, tokens: DataTokens) -> DataTokens:
        """Tokens with their positions added."""
        code = grid_code(self.rows, self.columns, width=tokens.shape[-1], device=tokens.device)
        return tokens + code.to(tokens.dtype)


class SinCos2dTokens(SinCosTokens):
    """Token n of every group gets the 2-D code of its row and column in the square of tokens."""

    def __init__(self, *, num_tokens: int, width: int) -> None:
        super().__init__(num_tokens=num_tokens, width=width)
        side = math.isqrt(num_tokens)
        if side * side != num_tokens or width % 2:
            raise ValueError(
                f"sin_cos_2d token positions need a square of tokens and an even width, not "
                f"{num_tokens} tokens of width {width}; choose 'learned' or 'sin_cos'"
            )
        self.rows, self.columns = side, side


class LearnedLatents(nn.Module):
    """The latents of group number t start as row t of one learned table; one grid only."""

    def __init__(self, *, num_groups: int, latents_per_group: int, width: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.table = table(num_groups * latents_per_group, width)

    def forward(self, places: Places, like: Tensor) -> Latents:
        """Every group's latents, before they have seen anything."""
        check_grid(places, num_groups=self.num_groups)
        rows = self.table.unflatten(0, (self.num_groups, -1))
        return rows.index_select(0, places.number)


class SinCos2dLatents(nn.Module):
    """Latent m of group number t starts as the 2-D code of (t, m); one number of groups only."""

    def __init__(self, *, num_groups: int, latents_per_group: int, width: int) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"sin_cos_2d latent positions need an even latent_width, not {width}")
        self.num_groups, self.latents_per_group, self.width = num_groups, latents_per_group, width

    def forward(self, places: Places, like: Tensor) -> Latents:
        """Every group's latents, before they have seen anything."""
        check_grid(places, num_groups=self.num_groups)
        code = grid_code(
            self.num_groups, self.latents_per_group, width=self.width, device=like.device
        )
        groups = code.unflatten(0, (self.num_groups, -1))
        return groups.index_select(0, places.number).to(like.dtype)


class CoordinateLatents(nn.Module):
    """Latents start as a learned slot plus a code of the group's place; any grid, any gaps.

        latents[g, m] = slot[m] + gain * code2d(row[g], column[g])

    Rows and columns are counted in groups from the image's upper left corner, not as shares of
    its size: one step means the same distance in every image. The gain, a number a channel, starts
    such that code and slots are equally strong, and both are as small as a learned table.
    """

    def __init__(self, *, num_groups: int | None, latents_per_group: int, width: int) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"coordinate positions need an even latent_width, not {width}")
        self.slots = table(latents_per_group, width)
        self.gain = nn.Parameter(torch.full((width,), math.sqrt(2.0) * TABLE_STD))

    def forward(self, places: Places, like: Tensor) -> Latents:
        """Every group's latents, before they have seen anything."""
        row, column = places.row.to(torch.float32), places.column.to(torch.float32)
        code = sin_cos_2d(row, column, width=len(self.gain)).to(self.gain.dtype)
        return self.slots + (self.gain * code)[:, None, :]


def check_grid(places: Places, *, num_groups: int) -> None:
    """Refuse images whose grid is not the one a table was made for."""
    sizes = places.grid_rows * places.grid_columns
    if (sizes != num_groups).any():
        found = sorted(set(sizes.tolist()))
        raise ValueError(
            f"this model was built for images of {num_groups} groups, not {found}; "
            "latent_position 'coordinate' and group_token 'none' take any size"
        )


TOKEN_POSITIONS: dict[str, Callable[..., nn.Module]] = {
    "learned": LearnedTokens,
    "sin_cos": SinCosTokens,
    "sin_cos_2d": SinCos2dTokens,
}
LATENT_POSITIONS: dict[str, Callable[..., nn.Module]] = {
    "learned": LearnedLatents,
    "sin_cos_2d": SinCos2dLatents,
    "coordinate": CoordinateLatents,
}


def check_positions(
    *, token_position: str, latent_position: str, num_groups: int | None, counted: str
) -> None:
    """Refuse unknown positions, and latents that know one number of groups without that number."""
    checks.one_of(TOKEN_POSITIONS, token_position=token_position)
    checks.one_of(LATENT_POSITIONS, latent_position=latent_position)
    if num_groups is not None:
        checks.positive(num_groups=num_groups)
    elif latent_position != "coordinate":
        raise ValueError(
            f"latent_position {latent_position!r} needs num_groups, the {counted} of every image; "
            "or take 'coordinate'"
        )
