"""Layers that are recomputed a part of the groups at a time give what they give at once."""

import pytest
import torch

from fit_model import recompute
from fit_model.attention.place import Place
from fit_model.body import Trunk
from fit_model.layout import ImageLayout
from fit_model.reach import Reach
from tests.fit_model.examples import randomize, trunk_config

CAUSAL = Reach(
    flow="causal",
    local=Place(causal="tokens"),
    across=Place(causal="chunks", chunk=3),
)


@pytest.mark.parametrize("reach", [Reach(), CAUSAL], ids=["open", "causal"])
def test_parts_change_neither_results_nor_gradients(monkeypatch, reach):
    image = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    images = ImageLayout.of(image, num_images=2, latents_per_group=3)
    found = {}
    for positions in (1 << 17, 10):  # of 5 tokens a group: all groups at once, or two at a time
        monkeypatch.setattr(recompute, "POSITIONS_A_PART", positions)
        torch.manual_seed(0)
        config = trunk_config(checkpointing="layer")
        trunk = randomize(Trunk(config, reach=reach).double())
        tokens = torch.randn(7, 5, 12, dtype=torch.float64, requires_grad=True)
        latents = torch.randn(7, 3, 8, dtype=torch.float64, requires_grad=True)
        valid = torch.rand(7, 5) < 0.8 if reach.flow == "open" else None
        streams = trunk(tokens, latents, images=images, valid=valid)
        (streams.tokens.square().sum() + streams.latents.square().sum()).backward()
        gradients = [each.grad for each in trunk.parameters()]
        found[positions] = [streams.tokens, streams.latents, tokens.grad, latents.grad, *gradients]
    for whole, parts in zip(found[1 << 17], found[10], strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_a_part_holds_as_many_groups_as_its_positions_allow(monkeypatch):
    monkeypatch.setattr(recompute, "POSITIONS_A_PART", 10)
    seen = []

    def layer(x: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
        seen.append((len(x), len(shared)))
        return x * shared

    x = torch.ones(7, 5, 1, requires_grad=True)
    recompute.recomputed_in_parts(layer, x, torch.full((1, 1, 1), 2.0))
    assert seen == [(2, 1), (2, 1), (2, 1), (1, 1)]
