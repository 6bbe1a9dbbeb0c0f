"""Codes of the points of a grid as vision transformers use them, read row by row, counted from 0.

    sin-cos code   blocks sin(row f), sin(col f), cos(row f), cos(col f),  f_j = theta^(-4j / width)
    Fourier code   z = 2 pi (row + 1) / (rows + 1e-6), the same of columns;
                   z theta^(-2 floor(j / 2) / features), its sine for even j, its cosine for odd j

Source: Chen et al. 2021 (MoCo v3), arXiv:2104.02057, in timm's orders; El-Nouby et al. 2021 (XCiT),
arXiv:2106.09681, whose Fourier code ToST uses too.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fit_model.layers import dense

SinCosOrder = Literal["sines_first", "rows_first", "columns_first"]
ORDERS: dict[SinCosOrder, tuple[int, ...]] = {
    "sines_first": (0, 1, 2, 3),
    "rows_first": (0, 2, 1, 3),
    "columns_first": (1, 3, 0, 2),
}
"""Places of the blocks; MAE and MoCo v3 have columns first."""
EPSILON = 1e-6


def sin_cos_code(
    rows: int,
    columns: int,
    *,
    width: int,
    order: SinCosOrder = "sines_first",
    theta: float = 10000.0,
    device: torch.device | None = None,
) -> Float[Tensor, "{rows*columns} {width}"]:
    """The sin-cos code of every point, in float64."""
    if width % 4:
        raise ValueError(f"a 2-D sin-cos code has a width that is a multiple of 4, not {width}")
    fourth = torch.arange(0, width, 4, device=device, dtype=torch.float64)
    frequency = theta ** (-fourth / width)
    number = torch.arange(rows * columns, device=device, dtype=torch.float64)[:, None]
    by_row = number.div(columns, rounding_mode="floor") * frequency
    by_column = number.remainder(columns) * frequency
    blocks = (by_row.sin(), by_column.sin(), by_row.cos(), by_column.cos())
    return torch.cat([blocks[place] for place in ORDERS[order]], -1)


def fourier_code(
    rows: int,
    columns: int,
    *,
    features: int,
    theta: float = 10000.0,
    epsilon: float = EPSILON,
    device: torch.device | None = None,
) -> Float[Tensor, "{rows*columns} {2*features}"]:
    """The Fourier code of every point, in float64: features of its row, then of its column."""
    number = torch.arange(rows * columns, device=device, dtype=torch.float64)
    row, column = number.div(columns, rounding_mode="floor"), number.remainder(columns)
    pair = torch.arange(features, device=device, dtype=torch.float64).div(2).floor()
    frequency = theta ** (-2 * pair / features)
    even = torch.arange(features, device=device) % 2 == 0

    def of(place: Tensor, count: int) -> Tensor:
        angles = (2 * math.pi * (place + 1) / (count + epsilon))[:, None] * frequency
        return torch.where(even, angles.sin(), angles.cos())

    return torch.cat([of(row, rows), of(column, columns)], -1)


class FourierPositions(nn.Module):
    """A linear map of the Fourier code, to be added to the tokens of a grid of any size.

    Cost: 2 f d multiply-adds a point, f the features.
    """

    def __init__(
        self, *, width: int, features: int = 32, theta: float = 10000.0, epsilon: float = EPSILON
    ) -> None:
        super().__init__()
        self.features, self.theta, self.epsilon = features, theta, epsilon
        self.projection = dense(2 * features, width)

    def code(self, rows: int, columns: int) -> Float[Tensor, "{rows*columns} f"]:
        """What is mapped, in the weights' dtype."""
        weight = self.projection.weight
        return fourier_code(
            rows,
            columns,
            features=self.features,
            theta=self.theta,
            epsilon=self.epsilon,
            device=weight.device,
        ).to(weight.dtype)

    def forward(self, rows: int, columns: int) -> Float[Tensor, "{rows*columns} d"]:
        """The position of every point, row by row."""
        return self.projection(self.code(rows, columns))
