"""How linear layers of the vision papers start, where `fit_model.layers` does otherwise."""

from torch import nn

VISION_STD = 0.02


def vision_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with weights from a normal of deviation 0.02 cut at +-2, and zero bias.

    Source: DeiT, XCiT and ToST start all their linear layers so.
    """
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.trunc_normal_(linear.weight, std=VISION_STD)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def head_width(width: int, *, heads: int, operator: str) -> int:
    """Width / heads; ValueError when that is no whole number."""
    if heads < 1 or width % heads:
        raise ValueError(f"{operator}: width {width} is no multiple of heads {heads}")
    return width // heads
