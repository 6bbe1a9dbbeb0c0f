"""FNet: tokens mixed by a Fourier transform, without a single weight."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fit_model.attention.place import Place
from fit_model.attention.seen import keys_seen, zero_unseen
from fit_model.attention.token_mixer import TokenMixer


@dataclass(frozen=True, kw_only=True)
class FnetConfig:
    """Mixing by a Fourier transform."""

    kind: Literal["fnet"] = "fnet"
    transform: Literal["sequence", "grid"] = "sequence"
    """"sequence" transforms the row of tokens as the paper does, "grid" its rows and columns."""
    scale: Literal["none", "orthonormal"] = "none"
    """"none" is the paper's sum of n c numbers; "orthonormal" keeps the length of x."""

    def __post_init__(self) -> None:
        if self.kind != "fnet":
            raise ValueError(f"kind is {self.kind!r}; these are the settings of 'fnet'")
        if self.transform not in ("sequence", "grid"):
            raise ValueError(f"transform is {self.transform!r}; use 'sequence' or 'grid'")
        if self.scale not in SCALES:
            raise ValueError(f"scale is {self.scale!r}; use 'none' or 'orthonormal'")


SCALES = {"none": "backward", "orthonormal": "ortho"}


class Fnet(TokenMixer):
    """The real part of the Fourier transform over tokens and channels.

        y[t, c] = Re sum_{n, k} x[n, k] exp(-2 pi i (t n / tokens + c k / channels))

    On a grid the sum over tokens is one over rows and one over columns. Heads play no part. Tokens
    that nobody sees enter as zeros, so what they hold changes nothing; how many there are does,
    because the frequencies count them too. There is no causal form.

    Cost:
        5 n c log2(n c) operations and no weights; 4 n c numbers in memory, in float32 at least.

    Source:
        Lee-Thorp et al. 2021, arXiv:2105.03824; in vision Jeevan & Sethi 2021, arXiv:2107.02239.
    """

    def __init__(self, config: FnetConfig, *, width: int, heads: int, place: Place) -> None:
        super().__init__()
        place.refuse_causal(operator="fnet")
        self.config = config
        self.grid: tuple[int, int] | None = None
        if config.transform == "grid":
            self.grid = place.raster(
                operator="fnet with transform 'grid'", otherwise="set transform to 'sequence'"
            )
            if place.prefix:
                raise ValueError(
                    f"fnet transforms a grid and nothing else, but {place.prefix} tokens stand "
                    "before it; leave the class token out or set transform to 'sequence'"
                )

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        may_attend: Bool[Tensor, "#b #h #n #n"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """The residual of every token."""
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        exact = zero_unseen(exact, keys_seen(may_attend, name="fnet"))
        if self.grid is None:
            y = torch.fft.fft2(exact, norm=SCALES[self.config.scale]).real
        else:
            rows, columns = self.grid
            if rows * columns != x.shape[1]:
                raise ValueError(
                    f"fnet was built for a grid of {rows} x {columns} and cannot take "
                    f"{x.shape[1]} tokens; set transform to 'sequence' where sizes differ"
                )
            grid = exact.unflatten(1, (rows, columns))
            y = torch.fft.fftn(grid, dim=(1, 2, 3), norm=SCALES[self.config.scale]).real
        return y.reshape(x.shape).to(x.dtype)

    def macs(self, num_tokens: int) -> int:
        """Multiply-adds in matrix products: none, a Fourier transform is not counted."""
        return 0
