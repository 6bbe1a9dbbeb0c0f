"""Nystromformer: softmax attention by way of a few landmarks."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fit_model.attention.head_layout import exact, head_width, merge_heads, projection, split_heads
from fit_model.attention.landmarks import Landmarks, inverse, softmax_of_seen
from fit_model.attention.place import Place
from fit_model.attention.rotary import Rotary
from fit_model.attention.seen import keys_seen
from fit_model.attention.token_mixer import TokenMixer


@dataclass(frozen=True, kw_only=True)
class NystromformerConfig:
    """Settings of a Nystromformer mixer."""

    kind: Literal["nystromformer"] = "nystromformer"
    landmarks: int = 64
    """Of a sequence; a shorter one has a landmark a token."""
    iterations: int = 6
    """Steps to the pseudo-inverse; about 20 reach it when the landmarks differ well."""
    normaliser: Literal["matrix", "batch"] = "matrix"
    """What the first guess is divided by: the matrix' own column sum, or the largest of all
    sequences and heads of a batch, as lucidrains and transformers do: then batch mates matter."""
    conv_kernel: int | None = 33
    """Length of the convolution of values along the sequence; None for none."""
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        if self.landmarks < 1 or self.iterations < 1:
            raise ValueError(
                f"nystromformer: {self.landmarks} landmarks and {self.iterations} iterations; use "
                "at least one of both, such as 64 and 6"
            )
        if self.normaliser not in ("matrix", "batch"):
            raise ValueError(
                f"nystromformer: normaliser is {self.normaliser!r}; use 'matrix' or 'batch'"
            )
        if self.conv_kernel is not None and (self.conv_kernel < 1 or self.conv_kernel % 2 == 0):
            raise ValueError(
                f"nystromformer: conv_kernel is {self.conv_kernel}; use an odd length, or null"
            )


class Nystromformer(TokenMixer):
    """Attention through m landmarks, the means of consecutive tokens, plus a convolution.

        A1 = softmax(q kl^T)  A2 = softmax(ql kl^T)  A3 = softmax(ql k^T)      q over sqrt(d)
        out = A1 A2^+ (A3 v) + conv(v)

    The i-th of n tokens belongs to landmark floor(i m / n): segments as equal as can be, nothing is
    padded. Tokens that nobody sees are not counted, so a sequence with gaps has the landmarks of
    the one without. A2^+ is iterated; rows of A1 A2^+ A3 sum to 1 only where that has converged.
    The convolution has one kernel a head and zeros beyond the ends. With a rotary code, landmarks
    are means of turned queries and keys. No causal form.

    Cost: b n (4 w^2 + 6 m w) + 4 b h m^3 (a step) multiply-adds, b h (n m + m^2) memory.
    Source: Xiong et al. 2021, arXiv:2102.03902.
    """

    def __init__(
        self,
        config: NystromformerConfig,
        *,
        width: int,
        heads: int,
        place: Place,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        place.refuse_causal(operator="nystromformer")
        head_width(width, heads, operator="nystromformer")
        self.config, self.heads = config, heads
        self.query = projection(width, width, bias=config.qkv_bias)
        self.key = projection(width, width, bias=config.qkv_bias)
        self.value = projection(width, width, bias=config.qkv_bias)
        self.out: nn.Module = projection(width, width, bias=True)
        self.rotary = rotary
        self.conv: nn.Conv2d | None = None
        if config.conv_kernel is not None:
            kernel, pad = (config.conv_kernel, 1), (config.conv_kernel // 2, 0)
            self.conv = nn.Conv2d(heads, heads, kernel, padding=pad, groups=heads, bias=False)

    def forward(
        self, x: Float[Tensor, "b n w"], may_attend: Bool[Tensor, "#b #h #n #n"] | None = None
    ) -> Float[Tensor, "b n w"]:
        """What every token reads in the others."""
        seen = keys_seen(may_attend, name="nystromformer")
        query, key, value = (
            split_heads(linear(x), self.heads) for linear in (self.query, self.key, self.value)
        )
        if self.rotary is not None:
            query, key = self.rotary(query, key)
        if seen is not None:
            value = value.where(seen[:, None, :, None], 0.0)
        mixed = self.through_landmarks(exact(query), exact(key), exact(value), seen)
        if self.conv is not None:
            mixed = mixed + exact(self.conv(value))
        return self.out(merge_heads(mixed).to(x.dtype))

    def macs(self, num_tokens: int) -> int:
        """Multiply-adds of a sequence in which all tokens are seen."""
        width, few = self.query.in_features, min(num_tokens, self.config.landmarks)
        products = 6 * num_tokens * few * width + 2 * few**2 * width
        steps = 4 * self.config.iterations * self.heads * few**3
        convolution = num_tokens * width * (self.config.conv_kernel or 0)
        return num_tokens * self.linear_macs() + products + steps + convolution

    def through_landmarks(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        value: Float[Tensor, "b h n d"],
        seen: Bool[Tensor, "#b #n"] | None,
    ) -> Float[Tensor, "b h n d"]:
        """A1 A2^+ (A3 v), without the matrix of all tokens by all tokens."""
        query = query * query.shape[-1] ** -0.5
        landmarks = Landmarks.of(
            seen, num_tokens=key.shape[2], at_most=self.config.landmarks, device=key.device
        )
        few_queries, few_keys = landmarks.means(query), landmarks.means(key)
        keys_of = few_keys.transpose(-2, -1)
        tokens_to_few = softmax_of_seen(query @ keys_of, landmarks.used)
        few_to_few = landmarks.drop_unused(softmax_of_seen(few_queries @ keys_of, landmarks.used))
        few_to_tokens = softmax_of_seen(few_queries @ key.transpose(-2, -1), seen)
        few_values = landmarks.drop_unused(few_to_tokens) @ value
        inverted = inverse(
            few_to_few, iterations=self.config.iterations, normaliser=self.config.normaliser
        )
        return tokens_to_few @ (inverted @ few_values)
