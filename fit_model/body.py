"""The interleaved trunk of FIT: local layers, read, global layers, write.

Chen & Li 2023, arXiv:2305.12689: local layers work on the data tokens of a group, global layers on
the latents of all groups of an image, and cross-attention goes between the two, inside a group.
For L tokens in groups of n with m latents each, attention costs L n + (L m / n)^2 pairs a layer
pair, 1.89 L^(4/3) m^(2/3) at the best n, instead of L^2.
"""

from collections.abc import Sequence
from typing import cast

from torch import nn

from fit_model.block import Block
from fit_model.layout import ImageLayout
from fit_model.moves import Streams
from fit_model.reach import Reach
from fit_model.recompute import Run
from fit_model.shapes import Context, DataTokens, Latents, ValidTokens
from fit_model.trunk_config import TrunkConfig


class Trunk(nn.Module):
    """The body of every FIT: stretches inside the groups, and meetings of an image's latents.

    Cost, multiply-adds for L tokens and M latents of an image, a = min(d, e), r the mlp_ratio:
        a local layer L ((4 + 2r) d^2 + 2 n d), a global one M (4 + 2r) e^2 + 2 M^2 e,
        a read or a write 2a (M e + L d + L m), both at once by one matrix of scores
        3a (M e + L d + L m).
    """

    def __init__(self, config: TrunkConfig, *, reach: Reach) -> None:
        super().__init__()
        blocks = [Block(config, plan, reach=reach) for plan in config.blocks]
        self.blocks = cast(Sequence[Block], nn.ModuleList(blocks))
        self.flow = reach.flow

    def forward(
        self,
        tokens: DataTokens,
        latents: Latents,
        *,
        images: ImageLayout,
        valid: ValidTokens | None = None,
        context: Context | None = None,
    ) -> Streams:
        """Both streams after all blocks; what is not valid changes nothing but itself."""
        offered = None
        for number in range(len(self.blocks)):
            streams = self.inside(number, tokens, latents, offered=offered, valid=valid)
            tokens = streams.tokens
            latents = self.meet(number, streams.latents, images=images, context=context)
            offered = self.offered(latents, images=images)
        return Streams(tokens=tokens, latents=latents)

    def inside(
        self,
        number: int,
        tokens: DataTokens,
        latents: Latents,
        *,
        offered: Latents | None = None,
        valid: ValidTokens | None = None,
    ) -> Streams:
        """A stretch between two meetings: any groups, each on its own, whoever else is there.

        Args:
            number: of the block whose local layers and read these are; the write of the block
                before it comes first.
            tokens: of the groups, as the stretch before left them.
            latents: of the groups, as they came from the last meeting.
            offered: what the write reads, see `offered`; None for block 0.
            valid: which tokens show something of their image; None for all.
        """
        block = self.blocks[number]
        if number > 0:
            tokens = self.blocks[number - 1].write(tokens, offered)  # [g n d] read their group
        tokens = block.local(tokens, valid)  # [g n d] see each other
        return block.read(tokens, latents, valid)  # [g m e] read their group

    def meet(
        self,
        number: int,
        latents: Latents,
        *,
        images: ImageLayout,
        context: Context | None = None,
        run: Run | None = None,
    ) -> Latents:
        """Latents of whole images after block `number`: told what is asked for, and of each other.

        Args:
            number: of the block.
            latents: of all groups, as the stretch left them.
            images: which groups make an image.
            context: what each image is asked to be, for a model that is told.
            run: how global layers are called, where not as configured.
        """
        block = self.blocks[number]
        latents = block.condition(latents, images, context)  # [g m e] read what is asked for
        return block.across(latents, images, run)  # [g m e] see all latents of their image

    def offered(self, latents: Latents, *, images: ImageLayout) -> Latents:
        """What a write lets the tokens of each group read of the latents that have just met.

        Their own group's; where nobody may look ahead those of the group before, zeros first.
        """
        return images.before(latents) if self.flow == "causal" else latents
