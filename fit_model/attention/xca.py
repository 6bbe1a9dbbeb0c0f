"""XCA, cross-covariance attention: channels attend to channels, over all tokens."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from fit_model.attention.place import Place
from fit_model.attention.seen import keys_seen, zero_unseen
from fit_model.attention.starts import head_width, vision_linear
from fit_model.attention.token_mixer import TokenMixer


@dataclass(frozen=True, kw_only=True)
class XcaConfig:
    """Cross-covariance attention."""

    kind: Literal["xca"] = "xca"
    temperature: float = 1.0
    """What the learned temperature of every head starts from."""
    qkv_bias: bool = True
    out_bias: bool = True
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.kind != "xca":
            raise ValueError(f"kind is {self.kind!r}; these are the settings of 'xca'")
        if not self.norm_eps > 0.0:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must be positive")


class Xca(TokenMixer):
    """The channels of a head attend to each other by how alike they run over the tokens.

        q, k, v = x Wqkv, split into heads;  every channel of q and k divided by its norm over n
        A[i, j] = softmax_j(temperature[h] * sum_n q[n, i] k[n, j])
        O[n, i] = sum_j A[i, j] v[n, j];  y = O Wout

    A head has an attention of d x d whatever the length, so tokens have no place and no order, and
    there is no causal form. Tokens that nobody sees are left out of the sums and give zeros before
    the output projection. Norms and sums are kept in float32 at least.

    Cost:
        4 n c^2 + 2 n c d multiply-adds for width c and heads of d; c d + n c numbers in memory.

    Source:
        El-Nouby et al. 2021, XCiT, arXiv:2106.09681.
    """

    def __init__(self, config: XcaConfig, *, width: int, heads: int, place: Place) -> None:
        super().__init__()
        head_width(width, heads=heads, operator="xca")
        place.refuse_causal(operator="xca")
        self.config = config
        self.heads = heads
        self.qkv = vision_linear(width, 3 * width, bias=config.qkv_bias)
        self.out = vision_linear(width, width, bias=config.out_bias)
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), config.temperature))

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        may_attend: Bool[Tensor, "#b #h #n #n"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """The residual of every token."""
        projected = zero_unseen(self.qkv(x), keys_seen(may_attend, name="xca"))
        exact = projected.to(torch.promote_types(projected.dtype, torch.float32))
        channels = exact.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)  # 3 b h d n
        query, key, value = channels.unbind(0)
        query, key = (
            functional.normalize(t, dim=-1, eps=self.config.norm_eps) for t in (query, key)
        )
        scores = self.temperature.to(exact.dtype) * (query @ key.transpose(-2, -1))
        mixed = scores.softmax(-1) @ value
        tokens = mixed.permute(0, 3, 1, 2).flatten(2).to(projected.dtype)
        # of strided tokens, the bfloat16 product is rounded before the bias is added
        return self.out(tokens.contiguous())

    def macs(self, num_tokens: int) -> int:
        """Multiply-adds of a sequence."""
        width = self.out.in_features
        return num_tokens * (self.linear_macs() + 2 * width * (width // self.heads))
