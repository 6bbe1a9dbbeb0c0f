"""Codes of grids are their formulas, a point and a channel at a time."""

import math

import pytest
import torch

from fit_model import parity
from fit_model.grid_codes import ORDERS, FourierPositions, fourier_code, sin_cos_code

BLOCKS = {
    "sines_first": ("row sin", "column sin", "row cos", "column cos"),
    "rows_first": ("row sin", "row cos", "column sin", "column cos"),
    "columns_first": ("column sin", "column cos", "row sin", "row cos"),
}


@pytest.mark.parametrize("order", BLOCKS)
@pytest.mark.parametrize(("rows", "columns", "width"), [(3, 4, 16), (1, 1, 4), (5, 1, 12)])
def test_the_sin_cos_code_is_a_loop(rows, columns, width, order):
    wanted = torch.zeros(rows * columns, width, dtype=torch.float64)
    for token in range(rows * columns):
        place = {"row": token // columns, "column": token % columns}
        for block, name in enumerate(BLOCKS[order]):
            axis, wave = name.split()
            for j in range(width // 4):
                turn = place[axis] * 10000.0 ** (-j / (width / 4))
                wanted[token, block * width // 4 + j] = getattr(math, wave)(turn)
    found = sin_cos_code(rows, columns, width=width, order=order)
    torch.testing.assert_close(found, wanted, atol=1e-14, rtol=0)
    assert set(ORDERS) == set(BLOCKS)


@pytest.mark.parametrize(("rows", "columns", "features"), [(3, 4, 8), (1, 1, 2), (5, 1, 5)])
def test_the_fourier_code_is_a_loop(rows, columns, features):
    wanted = torch.zeros(rows * columns, 2 * features, dtype=torch.float64)
    for token in range(rows * columns):
        places = ((token // columns, rows), (token % columns, columns))
        for block, (place, count) in enumerate(places):
            z = (place + 1) / (count + 1e-6) * 2 * math.pi
            for j in range(features):
                turn = z / 10000.0 ** (2 * (j // 2) / features)
                wanted[token, block * features + j] = (math.cos if j % 2 else math.sin)(turn)
    found = fourier_code(rows, columns, features=features)
    torch.testing.assert_close(found, wanted, atol=1e-14, rtol=0)


def test_fourier_positions_are_a_linear_map_for_any_grid():
    module = FourierPositions(width=6, features=8)
    for rows, columns in ((3, 4), (7, 2)):
        code = fourier_code(rows, columns, features=8).float()
        wanted = code @ module.projection.weight.T + module.projection.bias
        torch.testing.assert_close(module(rows, columns), wanted)
    assert module.bfloat16()(2, 2).dtype == torch.bfloat16


def test_a_width_without_four_blocks_is_refused():
    with pytest.raises(ValueError, match="multiple of 4, not 10"):
        sin_cos_code(2, 2, width=10)


@pytest.mark.parametrize("name", ["position_sincos_2d", "position_fourier_2d"])
def test_golden_codes_are_met(shared, name):
    assert parity.main([str(shared / f"golden/ops/{name}.npz"), "--tolerance", "1e-14"]) == 0
