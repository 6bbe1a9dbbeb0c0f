"""FNet: tokens mixed by a Fourier transform, without a single weight."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fit_model.attention.place import Place, require_length
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
    that nobody sees enter as zeros, so what they hold changes nothing. The frequencies count the
    tokens of a place of known length, zeros where a sequence is shorter; elsewhere those of a
    sequence up to its last one that is seen, whatever the others of its batch are filled up to.
    There is no causal form.

    Cost:
        5 n c log2(n c) operations and no weights; 4 n c numbers in memory, in float32 at least.

    Source:
        Lee-Thorp et al. 2021, arXiv:2105.03824; in vision Jeevan & Sethi 2021, arXiv:2107.02239.
    """

    def __init__(self, config: FnetConfig, *, width: int, heads: int, place: Place) -> None:
        super().__init__()
        place.refuse_causal(operator="fnet")
        self.config = config
        known = place.num_tokens is not None or place.grid is not None
        self.num_tokens = place.length(operator="fnet") if known else None
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
        seen = keys_seen(may_attend, name="fnet")
        exact = zero_unseen(exact, seen)
        if self.grid is not None:
            y = self._of_grids(exact, self.grid)
        elif self.num_tokens is not None:
            require_length(
                x.shape[1], longest=self.num_tokens, operator="fnet", otherwise="do without it"
            )
            y = self._of_sequences(exact, num_tokens=self.num_tokens)[:, : x.shape[1]]
        elif seen is None:
            y = self._of_sequences(exact, num_tokens=x.shape[1])
        else:
            y = self._each_to_its_end(exact, seen)
        return y.to(x.dtype)

    def _of_sequences(
        self, x: Float[Tensor, "b n c"], *, num_tokens: int
    ) -> Float[Tensor, "b {num_tokens} c"]:
        size = (num_tokens, x.shape[2])
        return torch.fft.fft2(x, s=size, norm=SCALES[self.config.scale]).real

    def _each_to_its_end(
        self, x: Float[Tensor, "b n c"], seen: Bool[Tensor, "#b n"]
    ) -> Float[Tensor, "b n c"]:
        """Zeros behind the last token that is seen."""
        ends = (seen * torch.arange(1, x.shape[1] + 1, device=x.device)).amax(1).expand(len(x))
        y = torch.zeros_like(x)
        for end in ends.unique().tolist():
            rows = (ends == end).nonzero()[:, 0]
            found = self._of_sequences(x[rows, :end], num_tokens=end) if end else x[rows, :end]
            y = y.index_add(0, rows, functional.pad(found, (0, 0, 0, x.shape[1] - end)))
        return y

    def _of_grids(self, x: Float[Tensor, "b n c"], grid: tuple[int, int]) -> Float[Tensor, "b n c"]:
        rows, columns = grid
        if rows * columns != x.shape[1]:
            raise ValueError(
                f"fnet was built for a grid of {rows} x {columns} and cannot take "
                f"{x.shape[1]} tokens; set transform to 'sequence' where sizes differ"
            )
        squares = x.unflatten(1, (rows, columns))
        y = torch.fft.fftn(squares, dim=(1, 2, 3), norm=SCALES[self.config.scale]).real
        return y.flatten(1, 2)

    def macs(self, num_tokens: int) -> int:
        """Multiply-adds in matrix products: none, a Fourier transform is not counted."""
        return 0
