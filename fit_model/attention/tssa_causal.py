"""The causal form of TSSA, and the sums that carry it from one token to the next."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fit_model.attention.chunks import at_chunk_ends
from fit_model.attention.place import Place, require_length
from fit_model.attention.seen import keys_seen, zero_unseen
from fit_model.attention.starts import head_width, vision_linear
from fit_model.attention.token_mixer import TokenMixer
from fit_model.attention.tssa import Tssa, TssaConfig, rescaled


@dataclass(frozen=True, kw_only=True)
class TssaState:
    """All that the tokens so far leave behind: 2 width + heads numbers, whatever their count."""

    num_tokens: int
    squares: Float[Tensor, "b h d"]
    """sum W^2"""
    weighted: Float[Tensor, "b h d"]
    """sum Pi W^2"""
    membership: Float[Tensor, "b h"]
    """sum Pi"""


class CausalTssa(TokenMixer):
    """Each token is rescaled by how much of what it sees lies along its own channels.

        W    = x Wqkv
        C_t  = max(sum_{s<=e(t)} W_s^2, cumsum_minimum)
        Pi_t = softmax over HEADS of temperature[h] * sum_d (W_t^2 / C_t + score_bias[h, t])
        S_t  = sum_{s<=e(t)} Pi_s W_s^2 / (sum_{s<=e(t)} Pi_s + membership_eps)
        O_t  = -W_t Pi_t / (1 + S_t);  y = O Wout

    e(t) is t itself, as in the paper, or the last token of t's chunk: then the tokens of a chunk
    come together, and where one chunk holds all of them this is Tssa with a bias of scores.
    Otherwise it is not Tssa behind a mask: Pi of an early token stays what it was when the token
    came, so even the last tokens differ. No output depends on a token after e(t). The bias is
    added to every channel, so d times it reaches the score.

    Cost:
        2 n d^2 multiply-adds for the projections, 8 n d for the rest; n d numbers in memory. In
        decoding a token costs the same whatever came before.

    Source:
        Wu et al. 2024, arXiv:2412.17810; language code at RobinWu218/ToST@071ea98.
    """

    def __init__(self, config: TssaConfig, *, width: int, heads: int, place: Place) -> None:
        super().__init__()
        head_width(width, heads=heads, operator="tssa")
        if place.sight is None:
            raise ValueError("this is the form of tssa in an order; use Tssa")
        self.config = config
        self.heads = heads
        self.chunk = place.sight
        self.qkv = vision_linear(width, width, bias=config.qkv_bias)
        self.out = vision_linear(width, width, bias=config.out_bias)
        self.temperature = nn.Parameter(torch.full((heads, 1), config.temperature))
        self.score_bias: nn.Parameter | None = None
        if config.score_bias == "positions":
            longest = place.length(
                operator="tssa with score_bias 'positions'", otherwise="set score_bias to 'none'"
            )
            self.score_bias = nn.Parameter(torch.zeros(heads, longest, 1))

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        may_attend: Bool[Tensor, "#b #h #n #n"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """The residual of every token of a sequence from its start."""
        y, _ = self.extend(x, self.start(x), may_attend)
        return y

    def macs(self, num_tokens: int) -> int:
        """Multiply-adds of a sequence: the projections alone."""
        return num_tokens * self.linear_macs()

    def start(self, x: Float[Tensor, "b n c"]) -> TssaState:
        """The state before any token, for the batch and device of x."""
        exact = torch.promote_types(x.dtype, torch.float32)
        zeros = x.new_zeros(x.shape[0], self.heads, x.shape[-1] // self.heads, dtype=exact)
        return TssaState(num_tokens=0, squares=zeros, weighted=zeros, membership=zeros[..., 0])

    def extend(
        self,
        x: Float[Tensor, "b n c"],
        state: TssaState,
        may_attend: Bool[Tensor, "#b #h #n #n"] | None = None,
    ) -> tuple[Float[Tensor, "b n c"], TssaState]:
        """The residual of tokens that follow those of `state`, and the state after them.

        Chunks come whole: ValueError where `state` ends inside of one.
        """
        if state.num_tokens % self.chunk:
            raise ValueError(
                f"{state.num_tokens} tokens end inside a chunk of {self.chunk}; give whole chunks"
            )
        seen = keys_seen(may_attend, name="causal tssa")
        values = self.qkv(x)
        exact = zero_unseen(values.to(state.squares.dtype), seen)
        exact = exact.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        squares = exact.square()
        so_far = self.at_ends(state.squares[:, :, None] + squares.cumsum(2))
        membership = self.membership(squares, so_far, after=state.num_tokens)
        counted = membership if seen is None else membership.where(seen[:, None], 0.0)
        shares = (counted[..., None] * squares).cumsum(2)
        weighted = self.at_ends(state.weighted[:, :, None] + shares)
        total = self.at_ends(state.membership[:, :, None] + counted.cumsum(2))
        moment = weighted / (total[..., None] + self.config.membership_eps)
        mixed = rescaled(exact, membership, moment).transpose(1, 2).flatten(2)
        after = TssaState(
            num_tokens=state.num_tokens + x.shape[1],
            squares=so_far[:, :, -1],
            weighted=weighted[:, :, -1],
            membership=total[:, :, -1],
        )
        return self.out(mixed.to(values.dtype)), after

    def at_ends(self, so_far: Float[Tensor, "b h n *d"]) -> Float[Tensor, "b h n *d"]:
        """Sums up to each token as they stand where its sight ends."""
        return at_chunk_ends(so_far, chunk=self.chunk, axis=2)

    def membership(
        self,
        squares: Float[Tensor, "b h n d"],
        so_far: Float[Tensor, "b h n d"],
        *,
        after: int,
    ) -> Float[Tensor, "b h n"]:
        """How much of each token belongs to each head, judged when its chunk has come."""
        scores = squares / so_far.clamp_min(self.config.cumsum_minimum)
        if self.score_bias is not None:
            longest, end = self.score_bias.shape[1], after + squares.shape[2]
            require_length(
                end, longest=longest, operator="tssa", otherwise="set score_bias to 'none'"
            )
            scores = scores + self.score_bias[:, after:end].to(scores.dtype)
        return (self.temperature.to(scores.dtype) * scores.sum(-1)).softmax(1)


def tssa_mixer(config: TssaConfig, *, width: int, heads: int, place: Place) -> Tssa | CausalTssa:
    """The form of TSSA that the place asks for."""
    form = Tssa if place.causal == "none" else CausalTssa
    return form(config, width=width, heads=heads, place=place)
