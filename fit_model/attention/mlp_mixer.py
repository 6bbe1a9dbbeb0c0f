"""Token mixing of MLP-Mixer: the same two layers over the tokens, for every channel."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fit_model.attention.place import Place, require_length
from fit_model.attention.seen import keys_seen, zero_unseen, zero_without_seen
from fit_model.attention.token_mixer import TokenMixer
from fit_model.layers import dense


@dataclass(frozen=True, kw_only=True)
class MlpMixerConfig:
    """Mixing by a multi-layer perceptron over tokens."""

    kind: Literal["mlp_mixer"] = "mlp_mixer"
    hidden: int | None = None
    """Width of the hidden layer; None for half the width of a token, as in the paper's models."""

    def __post_init__(self) -> None:
        if self.kind != "mlp_mixer":
            raise ValueError(f"kind is {self.kind!r}; these are the settings of 'mlp_mixer'")
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"hidden is {self.hidden}; it must be at least 1, or null")


class MlpMixer(TokenMixer):
    """Every channel's row of tokens goes through one perceptron.

        y[:, c] = contract(gelu(expand(x[:, c])))          n -> hidden -> n, shared by all channels

    Weights belong to positions, so the longest length is fixed; a shorter sequence is one padded
    with zeros. Heads play no part. Tokens that nobody sees enter as zeros. There is no causal form.

    Cost:
        2 n hidden c multiply-adds; (n + hidden) c numbers in memory, 2 n hidden weights.

    Source:
        Tolstikhin et al. 2021, arXiv:2105.01601, eq. 1, first line.
    """

    def __init__(self, config: MlpMixerConfig, *, width: int, heads: int, place: Place) -> None:
        super().__init__()
        place.refuse_causal(operator="mlp_mixer")
        hidden = max(width // 2, 1) if config.hidden is None else config.hidden
        self.width = width
        self.num_tokens = place.length(operator="mlp_mixer")
        self.expand = dense(self.num_tokens, hidden)
        self.contract = dense(hidden, self.num_tokens)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        may_attend: Bool[Tensor, "#b #h #n #n"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """The residual of every token."""
        length = x.shape[1]
        require_length(length, longest=self.num_tokens, operator="mlp_mixer")
        seen = keys_seen(may_attend, name="mlp_mixer")
        rows = zero_unseen(x, seen).transpose(1, 2)
        hidden = functional.linear(rows, self.expand.weight[:, :length], self.expand.bias)
        mixed = functional.linear(
            functional.gelu(hidden), self.contract.weight[:length], self.contract.bias[:length]
        )
        return zero_without_seen(mixed.transpose(1, 2), seen)

    def macs(self, num_tokens: int) -> int:
        """Multiply-adds of a sequence."""
        return 2 * num_tokens * self.expand.out_features * self.width
