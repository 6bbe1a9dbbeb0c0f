"""AFT-local: AFT whose position bias counts near the query and is zero, not absent, beyond.

    w[t, i] = (u v^T)[t, i] where |t - i| < window, else 0

and the rest is AFT-full (`fit_model.attention.aft`), so that every query still sees every key.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from fit_model.attention.aft import Aft, check_bias
from fit_model.attention.aft_bias import PositionBias
from fit_model.attention.biased_means import Rows, biased_means
from fit_model.attention.place import Place
from fit_model.checks import positive


@dataclass(frozen=True, kw_only=True)
class AftLocalConfig:
    """AFT with a bias for near places."""

    kind: Literal["aft_local"] = "aft_local"
    window: int = 32
    """Places less than this apart have a bias: none for 0, a token and itself for 1."""
    rank: int | None = 64
    """Width of the two factors of the bias (the paper: 64 CIFAR-10, 256 enwik8); None: none."""
    initial_std: float = 0.1
    """Of the factors. The paper's N(0, 1e-2) is read as a variance; 0.01 is the other reading."""
    hidden: int | None = None
    """Channels that are mixed; None for the width of the tokens."""
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ValueError(f"window is {self.window}: it must be at least 0")
        check_bias(rank=self.rank, initial_std=self.initial_std)
        if self.hidden is not None:
            positive(hidden=self.hidden)


class AftLocal(Aft):
    """AFT with a bias for near places, for sequences of at most place.num_tokens.

    The keys beyond the window are summed as the prefix that ends and the suffix that begins there:
    the paper's sum over all tokens less the sum over the window loses all digits where the window
    holds the largest keys and the bias suppresses them. The window is one of the flattened
    sequence, as in the paper; heads play no part. Cost: b n (window + block) d in time, b n d in
    memory beside the bias; a bias without factors still is an n x n table.
    Source: arXiv:2105.14103, eq. 4.
    """

    def __init__(self, config: AftLocalConfig, *, width: int, heads: int, place: Place) -> None:
        super().__init__(
            config.kind, width=width, hidden=config.hidden, place=place, qkv_bias=config.qkv_bias
        )
        self.window = config.window
        self.position_bias = PositionBias(
            place.length(operator=config.kind), rank=config.rank, initial_std=config.initial_std
        )

    def mix(
        self, key: Float[Tensor, "b n d"], value: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        """The means weighted by exp(key + bias)."""
        self.position_bias.check(key.shape[1], operator=self.kind)

        def bias(rows: slice, columns: slice) -> Tensor:
            return self.position_bias.block(rows, columns, dtype=key.dtype)

        return biased_means(key, value, bias, reach=self.window, chunk=self.sight)

    def mixing_macs(self, num_tokens: int) -> int:
        """Every row of the bias times the keys and values near it."""
        rows = Rows.of(num_tokens, reach=self.window, chunk=self.sight)
        return rows.macs(width=self.out.in_features)
