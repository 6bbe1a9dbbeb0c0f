"""The two ends of ViX: what is added to tokens first, and what is read off in the end."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from fit_model.attention.place import Place
from fit_model.grid_codes import FourierPositions, sin_cos_code
from fit_model.layers import Positions
from fit_model.moves import keys_alone
from fit_model.vix_layers import ClassAttentionLayer

Seen = Bool[Tensor, "b n"]
CLASS_ATTENTION_LAYERS = 2
"""In CaiT, XCiT and ToST alike."""


class ClassToken(nn.Module):
    """One learned token before all others, normal with deviation `std` at the start."""

    def __init__(self, width: int, *, std: float) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, width) * std)

    def forward(self, tokens: Positions) -> Float[Tensor, "b n+1 d"]:
        """Tokens with this one put before them."""
        return torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)


class Learned(nn.Module):
    """A row of a learned table for every token, normal with deviation `std` at the start."""

    def __init__(self, *, place: Place, width: int, std: float) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(place.length(operator="learned"), width) * std)

    def forward(self, tokens: Positions) -> Positions:
        """Tokens with their positions added."""
        return tokens + self.table


class SinCos2d(nn.Module):
    """The 2-D code of MoCo v3 for the tokens of the grid; see `grid_codes`."""

    def __init__(self, *, place: Place, width: int, std: float) -> None:
        super().__init__()
        self.place = place
        sin_cos_code(1, 1, width=width)  # refuses a width that does not fit

    def forward(self, tokens: Positions) -> Positions:
        """Tokens with their positions added."""
        rows, columns = self.place.raster(operator="sin_cos_2d")
        width, device = tokens.shape[-1], tokens.device
        code = sin_cos_code(rows, columns, width=width, order="columns_first", device=device)
        return tokens + functional.pad(code.to(tokens.dtype), (0, 0, self.place.prefix, 0))


class Fourier(nn.Module):
    """A linear layer of the 2-D Fourier code for the tokens of the grid, as in XCiT and ToST."""

    def __init__(self, *, place: Place, width: int, std: float) -> None:
        super().__init__()
        self.place = place
        self.code = FourierPositions(width=width)

    def forward(self, tokens: Positions) -> Positions:
        """Tokens with their positions added."""
        code = self.code(*self.place.raster(operator="fourier"))
        return tokens + functional.pad(code, (0, 0, self.place.prefix, 0))


class Nowhere(nn.Module):
    """Tokens as they are."""

    def __init__(self, *, place: Place, width: int, std: float) -> None:
        super().__init__()

    def forward(self, tokens: Positions) -> Positions:
        """`tokens`."""
        return tokens


POSITIONS: dict[str, Callable[..., nn.Module]] = {
    "learned": Learned,
    "sin_cos_2d": SinCos2d,
    "fourier": Fourier,
    "none": Nowhere,
}


class FirstToken(nn.Module):
    """The class token that went through all layers."""

    def forward(self, tokens: Positions, seen: Seen | None = None) -> Float[Tensor, "b d"]:
        """The first token."""
        return tokens[:, 0]


class Mean(nn.Module):
    """The mean of the tokens that are seen, summed in float32 at least."""

    def forward(self, tokens: Positions, seen: Seen | None = None) -> Float[Tensor, "b d"]:
        """The mean, in the dtype of the tokens."""
        exact = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        if seen is None:
            return exact.mean(1).to(tokens.dtype)
        sums = exact.where(seen[..., None], 0.0).sum(1)
        return (sums / seen.sum(1, keepdim=True)).to(tokens.dtype)


class ClassAttention(nn.Module):
    """A class token that comes after all layers and reads the others in two layers of its own."""

    def __init__(self, *, width: int, std: float, **layer: Any) -> None:
        super().__init__()
        self.class_token = ClassToken(width, std=std)
        self.layers = nn.ModuleList(
            ClassAttentionLayer(width=width, **layer) for _ in range(CLASS_ATTENTION_LAYERS)
        )

    def forward(self, tokens: Positions, seen: Seen | None = None) -> Float[Tensor, "b d"]:
        """The class token after its layers."""
        tokens = self.class_token(tokens)
        if seen is not None:
            seen = functional.pad(seen, (1, 0), value=True)
        for layer in self.layers:
            tokens = layer(tokens, keys_alone(seen))
        return tokens[:, 0]
