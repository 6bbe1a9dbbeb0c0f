"""What happens between two meetings of an image's latents happens in each group alone."""

import pytest
import torch

from fit_model.attention.place import Place
from fit_model.body import Trunk
from fit_model.layout import ImageLayout
from fit_model.reach import Reach
from tests.fit_model.examples import randomize, trunk_config

GROUPS, TOKENS = 5, 4
IMAGE = torch.tensor([0, 0, 1, 1, 1])
CAUSAL = Reach(flow="causal", local=Place(causal="tokens"), across=Place(causal="chunks", chunk=3))


@pytest.mark.parametrize(
    ("reach", "changes"),
    [
        (Reach(), {}),
        (Reach(), {"exchange": "bixt"}),
        (Reach(flow="conditioned"), {}),
        (Reach(flow="conditioned"), {"exchange": "bixt"}),
        (CAUSAL, {}),
    ],
    ids=str,
)
@torch.no_grad()
def test_stretches_of_a_group_at_a_time_make_the_whole_trunk(reach, changes):
    config = trunk_config(layers="(1)2(1)1(1)", **changes)
    trunk = randomize(Trunk(config, reach=reach).double())
    images = ImageLayout.of(IMAGE, num_images=2, latents_per_group=3)
    context = torch.randn(2, 2, 8, dtype=torch.float64) if reach.flow == "conditioned" else None
    tokens = torch.randn(GROUPS, TOKENS, 12, dtype=torch.float64)
    latents = torch.randn(GROUPS, 3, 8, dtype=torch.float64)
    valid = torch.rand(GROUPS, TOKENS) > 0.3
    whole = trunk(tokens, latents, images=images, valid=valid, context=context)

    offered = [None] * GROUPS
    for number in range(len(trunk.blocks)):
        alone = [
            trunk.inside(
                number, tokens[[group]], latents[[group]],
                offered=offered[group], valid=valid[[group]],
            )
            for group in range(GROUPS)
        ]  # fmt: skip
        tokens = torch.cat([each.tokens for each in alone])
        latents = torch.cat([each.latents for each in alone])
        latents = trunk.meet(number, latents, images=images, context=context)
        offered = trunk.offered(latents, images=images).split(1)
    torch.testing.assert_close(tokens, whole.tokens, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(latents, whole.latents, rtol=1e-12, atol=1e-12)
