"""Every operator as one layer over sequences, (x, may_attend) -> y, for tests that hold for all."""

import torch
from torch import nn

from fit_model.attention.bixt import BidirectionalCross, BixtConfig
from fit_model.attention.mixers import CAUSAL_MIXERS, MIXERS, build_mixer
from fit_model.attention.operators import CAUSAL_OPERATORS, OPERATORS
from fit_model.attention.place import Place
from fit_model.layers import SelfHeads

WIDTH, HEADS = 32, 4
NAMES = [*OPERATORS, *MIXERS, "bixt", *(f"{name} causal" for name in CAUSAL_OPERATORS)]
NAMES += [f"{name} {sight}" for name in CAUSAL_MIXERS for sight in ("causal", "in chunks")]
PLACES = {
    "": lambda num_tokens: Place(grid=(num_tokens // 5, 5)),
    "causal": lambda num_tokens: Place(num_tokens=num_tokens, causal="tokens"),
    "in chunks": lambda num_tokens: Place(num_tokens=num_tokens, causal="chunks", chunk=15),
}


class Exchange(nn.Module):
    """BiXT whose latents are the first tokens' channels; both results after one another."""

    def __init__(self):
        super().__init__()
        self.cross = BidirectionalCross(
            BixtConfig(), token_width=WIDTH, latent_width=24, heads=HEADS
        )

    def forward(self, x, may_attend=None):
        valid = None if may_attend is None else may_attend[:, 0, 0]
        # in a row of their own: of strided inputs, PyTorch rounds product and sum one by one
        got = self.cross(x, x[:, :4, :24].contiguous(), valid)
        return torch.cat([got.tokens.flatten(1), got.latents.flatten(1)], 1)


def build_operator(name: str, *, num_tokens: int, seed: int = 0) -> nn.Module:
    """The operator with every weight a little away from where it starts."""
    torch.manual_seed(seed)
    kind, _, sight = name.partition(" ")
    if kind == "bixt":
        layer: nn.Module = Exchange()
    elif kind in OPERATORS:
        attend = (CAUSAL_OPERATORS if sight else OPERATORS)[kind]
        layer = SelfHeads(width=WIDTH, heads=HEADS, attend=attend)
    else:
        layer = build_mixer(kind, width=WIDTH, heads=HEADS, place=PLACES[sight](num_tokens))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def padded(num_tokens: int) -> torch.Tensor:
    """A mask for two sequences, the second a third shorter."""
    seen = torch.ones(2, 1, 1, num_tokens, dtype=torch.bool)
    seen[1, ..., num_tokens - num_tokens // 3 :] = False
    return seen


def step(layer: nn.Module, x: torch.Tensor, may_attend) -> dict[str, torch.Tensor]:
    """The output, and the gradients by input and weights, in float64."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = layer(x, may_attend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).bfloat16()
    y.backward(weights.to(y.dtype))
    found = {name: each.grad for name, each in layer.named_parameters()}
    return {name: each.detach().double() for name, each in {"y": y, "x": x.grad, **found}.items()}


def apart(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest error of an output or gradient: |found - wanted| / |wanted|, norms over all.

    A gradient that is small because its terms cancel is judged by a twentieth of the largest.
    """
    largest = max(float(each.norm()) for name, each in wanted.items() if name != "y")
    errors = [float((found["y"] - wanted["y"]).norm() / wanted["y"].norm())]
    for name in wanted.keys() - {"y"}:
        size = max(float(wanted[name].norm()), largest / 20)
        errors.append(float((found[name] - wanted[name]).norm()) / size)
    return max(errors)
