"""Models of every face on images that several workers can share, trained by one or by several."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fit_model.augment.config import AugmentConfig
from fit_model.course import WHOLE, Runner
from fit_model.groups import GroupBatch, collate
from fit_model.heads import ClassifyConfig
from fit_model.model import Model
from fit_model.models import build
from tests.fit_model.augment.pictures import augmented
from tests.fit_model.examples import image, model_config, randomize, trunk_config
from tests.fit_model.generators import LAYERS, model_of, seeds_of, targets_of

IMAGES = [
    image(2, 3, seed=1),
    image(3, 5, stored=[0, 3, 5, 7, 11, 12, 14], height_px=19, width_px=37, nodata=9.0, seed=2),
    image(2, 2, seed=3),
]
"""Of several sizes, with groups that are not stored, ragged edges and missing pixels."""
TALL = [image(4, 1, seed=4), image(5, 2, stored=[0, 1, 2, 5, 6, 8], seed=5), image(6, 1, seed=6)]
"""With rows of groups for four workers."""
COLOURS = AugmentConfig(symmetries="all", brightness=0.2, contrast=0.2, band_shift=0.5)
FLIPS = AugmentConfig(symmetries="flips")
Gradients = dict[str, torch.Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, and the images it is trained on."""

    model: Model
    images: list[GroupBatch]
    unit: str = "groups"

    def step(
        self,
        chosen: range,
        *,
        runner: Runner = WHOLE,
        cut: Callable[[GroupBatch], GroupBatch] = lambda batch: batch,
        share: float = 1.0,
    ) -> tuple[torch.Tensor, Gradients]:
        """Losses of the chosen images, and the gradients of `share` of their weighted sum."""
        model = self.model
        model.zero_grad()
        targets = targets_of(model, len(self.images))
        losses = model.losses(
            cut(collate([self.images[number] for number in chosen])),
            None if targets is None else targets[chosen.start : chosen.stop],
            seeds=seeds_of(len(self.images))[chosen.start : chosen.stop],
            runner=runner,
        )
        (losses * torch.arange(1 + chosen.start, 1 + chosen.stop) * share).sum().backward()
        return losses.detach(), {name: each.grad for name, each in model.named_parameters()}


def encoder(*, pool: str = "latents", images=IMAGES, trunk=None, **face) -> Case:
    layers = "(1)2(1)1" if pool == "latents" else LAYERS
    head = ClassifyConfig(classes=("day", "night", "dusk"), pool=pool)
    config = trunk_config(**{"layers": layers} | (trunk or {}))
    torch.manual_seed(0)
    model = randomize(build(model_config(head=head, trunk=config, **face)))
    return Case(model=model.double().eval(), images=images)


def across(operator: str, **face) -> Case:
    return encoder(trunk={"global_operator": operator}, **face)


def views(images: list[GroupBatch], config: AugmentConfig) -> list[GroupBatch]:
    return [augmented(each, config, seed=seed) for seed, each in enumerate(images)]


def fixed_grid() -> Case:
    images = [image(2, 3, stored=stored, seed=7) for stored in ([0, 1, 3, 4, 5], [0, 1, 2, 3])]
    return encoder(
        images=[*images, image(2, 3, width_px=20, seed=8)], num_groups=6,
        trunk={"global_operator": ("linformer@rank=4", "mlp_mixer")},
    )  # fmt: skip


def generator(kind: str, *, trunk=None, images=TALL, **face) -> Case:
    config = trunk_config(**{"layers": LAYERS, "latent_width": 16} | (trunk or {}))
    unit = "rows" if kind == "autoregressive" else "groups"
    model = model_of(kind, trunk=config, **face).double()
    return Case(model=model, images=images, unit=unit)


CASES: dict[str, Callable[[], Case]] = {
    "encoder, latents": encoder,
    "encoder, tokens": lambda: encoder(pool="tokens"),
    "encoder, one latent a group": lambda: encoder(
        pool="tokens", trunk={"latents_per_group": 1}
    ),
    "encoder, exchange": lambda: encoder(trunk={"exchange": "bixt"}),
    "encoder, latents look back": lambda: encoder(latent_mask="causal"),
    "encoder, layers recomputed": lambda: encoder(trunk={"checkpointing": "layer"}),
    "encoder, tssa and xca": lambda: across(("tssa", "xca")),
    "encoder, performer looks back": lambda: across("performer@features=4", latent_mask="causal"),
    "encoder, other views": lambda: encoder(pool="tokens", images=views(IMAGES, COLOURS)),
    "autoregressive, flipped": lambda: generator("autoregressive", images=views(TALL, FLIPS)),
    "encoder, one fixed grid": fixed_grid,
    "diffusion": lambda: generator("diffusion", normalize_input="deviation"),
    "diffusion, other forms": lambda: generator(
        "diffusion", self_conditioning="none", classes=(), prediction="v", loss="x",
        latent_mask="causal",
    ),
    "autoregressive": lambda: generator("autoregressive", label_dropout=0.5),
    "autoregressive, other forms": lambda: generator(
        "autoregressive", order="raster", classes=(),
        trunk={"global_operator": "tssa@score_bias=none", "checkpointing": "layer"},
    ),
}  # fmt: skip
