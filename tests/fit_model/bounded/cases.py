"""Models of every face with awkward batches, and their losses and gradients, run either way."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from fit_model.augment.config import AugmentConfig
from fit_model.bounded.config import BoundedConfig
from fit_model.bounded.engine import Bounded
from fit_model.course import WHOLE, Runner
from fit_model.groups import GroupBatch, collate
from fit_model.heads import ClassifyConfig, RegressConfig
from fit_model.model import Model
from fit_model.models import build
from tests.fit_model import generators
from tests.fit_model.augment.pictures import augmented
from tests.fit_model.examples import image, model_config, randomize, trunk_config
from tests.fit_model.generators import LAYERS, batch_of, model_of, seeds_of, targets_of

IMAGES = [
    image(2, 2, seed=1),
    image(3, 5, stored=[0, 3, 11], height_px=19, width_px=37, seed=2),
    image(1, 1, seed=3, nodata=7.0),
]
"""Of several sizes, with groups that are not stored, ragged edges and missing pixels."""


EVERYTHING = AugmentConfig(
    symmetries="all", crop_groups=(2, 4), brightness=0.2, contrast=0.2, band_scale=0.1,
    band_shift=0.5,
)  # fmt: skip
TURNS = AugmentConfig(symmetries="turns")


@dataclass
class Case:
    """A model and what it is trained on."""

    model: Model
    batch: GroupBatch
    targets: torch.Tensor | None

    def step(self, runner: Runner = WHOLE) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        """The losses and the gradients of their weighted sum."""
        self.model.zero_grad()
        seeds = seeds_of(self.batch.num_images)
        losses = self.model.losses(self.batch, self.targets, seeds=seeds, runner=runner)
        (losses * torch.arange(1, 1 + len(losses))).sum().backward()
        return losses.detach(), {n: each.grad for n, each in self.model.named_parameters()}


def encoder(*, pool: str = "latents", trunk=None, **face) -> Case:
    layers = "(1)2(1)1" if pool == "latents" else LAYERS
    config = trunk_config(**{"layers": layers} | (trunk or {}))
    head = ClassifyConfig(classes=("day", "night", "dusk"), pool=pool)
    model = randomize(build(model_config(head=head, trunk=config, **face))).double()
    return Case(model=model.eval(), batch=collate(IMAGES), targets=torch.tensor([0, 2, 1]))


def regression() -> Case:
    head = RegressConfig(targets=("a", "b"), target_mean=(1.0, 2.0), target_std=(3.0, 4.0))
    model = randomize(build(model_config(head=head))).double().eval()
    return Case(model=model, batch=collate(IMAGES), targets=torch.randn(3, 2).double())


def fixed_grid() -> Case:
    case = encoder(
        pool="tokens", group_token="one_hot", num_groups=4, latent_position="learned",
        trunk={"local_operator": "tssa", "global_operator": "xca"},
    )  # fmt: skip
    case.batch = collate([image(2, 2, stored=[0, 1, 3], width_px=13, seed=n) for n in range(3)])
    return case


def changed(case: Case, config: AugmentConfig) -> Case:
    """The case on views of its images."""
    ends = torch.bincount(case.batch.image).cumsum(0).tolist()
    images = [case.batch.part(slice(*each)) for each in pairwise([0, *ends])]
    views = [augmented(each, config, seed=seed) for seed, each in enumerate(images)]
    return replace(case, batch=collate(views))


def generator(kind: str, *, trunk=None, **face) -> Case:
    config = trunk_config(**{"layers": LAYERS, "latent_width": 16} | (trunk or {}))
    model = model_of(kind, trunk=config, **face).double()
    batch = batch_of(generators.IMAGES[1:3])  # 4 groups; 16 patches, each a group of the decoder
    return Case(model=model, batch=batch, targets=targets_of(model, 2))


CASES: dict[str, Callable[[], Case]] = {
    "encoder, latents": encoder,
    "encoder, tokens": lambda: encoder(pool="tokens", token_position="sin_cos_2d"),
    "encoder, numbers": regression,
    "encoder, one fixed grid, other operators": fixed_grid,
    "encoder, exchange": lambda: encoder(trunk={"exchange": "bixt"}),
    "encoder, exchange, tokens": lambda: encoder(pool="tokens", trunk={"exchange": "bixt"}),
    "encoder, convolutions, rotary": lambda: encoder(
        stem="convolutions", trunk={"local_rotary": "rotary_axial", "heads": 1}
    ),
    "encoder, latents look back": lambda: encoder(latent_mask="causal"),
    "encoder, layers recomputed": lambda: encoder(trunk={"checkpointing": "layer"}),
    "encoder, no layers but reads": lambda: encoder(trunk={"layers": "(0)1(0)1(0)1"}),
    "encoder, other views": lambda: changed(encoder(), EVERYTHING),
    "diffusion, turned": lambda: changed(generator("diffusion"), TURNS),
    "autoregressive, turned": lambda: changed(generator("autoregressive"), TURNS),
    "encoder, one block": lambda: encoder(trunk={"layers": "(2)1"}),
    "diffusion": lambda: generator("diffusion"),
    "diffusion, deviation": lambda: generator(
        "diffusion", normalize_input="deviation", prediction="v", loss="x"
    ),
    "diffusion, one pass, no label": lambda: generator(
        "diffusion", self_conditioning="none", classes=(), trunk={"after_exchange": "feed_forward"}
    ),
    "autoregressive": lambda: generator("autoregressive", label_dropout=0.5),
    "autoregressive, raster": lambda: generator(
        "autoregressive", order="raster", embedding="separate", classes=(),
        trunk={"local_operator": "aft_simple", "checkpointing": "layer"},
    ),
}  # fmt: skip


def bounded(groups_a_chunk: int = 3, **settings) -> Bounded:
    return Bounded(BoundedConfig(groups_a_chunk=groups_a_chunk, **settings))
