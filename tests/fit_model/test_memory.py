"""The memory that a step is expected to need is what its tensors take."""

import pytest
import torch

from fit_model.attention.mixers import MIXERS
from fit_model.attention.place import Place
from fit_model.bounded.config import BoundedConfig
from fit_model.heads import ClassifyConfig
from fit_model.kept_numbers import mixing, saved_bytes
from fit_model.memory import activations
from fit_model.model import ModelConfig
from fit_model.models import build
from fit_model.objective import Objective
from fit_model.tokens import InputConfig
from fit_model.vix import VixConfig
from fit_model.vix_layers import mixer_of
from tests.fit_model.examples import BANDS, SIDE_PX, image, model_config, trunk_config
from tests.fit_model.generators import generator_config, pixels, seeds_of
from tests.fit_model.live_memory import peak_bytes

TOO_LITTLE, TOO_MUCH = 0.93, 1.33
"""What may be expected, as a share of what is measured: rather too much."""
SIZE = {"width": 48, "latent_width": 48, "latents_per_group": 2, "heads": 2, "latent_heads": 2}
ROWS = 4
"""Images are squares of so many groups, of 8 x 8 patches each."""


def encoder(**trunk) -> ModelConfig:
    settings = {"layers": "(2)2(2)2(1)"} | SIZE | trunk
    head = ClassifyConfig(classes=("day", "night"), pool="tokens")
    return model_config(head=head, trunk=trunk_config(**settings), patch_px=1)


def generator(kind: str, **trunk) -> ModelConfig:
    settings = {"layers": "(2)2(2)2(1)"} | SIZE | trunk
    patch_px = {"diffusion": 1, "autoregressive": 4}[kind]
    return generator_config(
        kind, trunk=trunk_config(**settings), classes=(), source=pixels(), patch_px=patch_px
    )


def vix() -> ModelConfig:
    face = VixConfig(
        patch_px=1, width=32, depth=3, heads=2, grid_rows=ROWS, grid_columns=ROWS,
        position="sin_cos_2d", pooling="mean",
    )  # fmt: skip
    source = InputConfig(
        bands=BANDS, group_side_px=SIDE_PX, band_mean=(0.0,) * BANDS, band_std=(1.0,) * BANDS
    )
    return ModelConfig(face=face, input=source, head=ClassifyConfig(classes=("day", "night")))


def share_expected(
    config: ModelConfig,
    *,
    rows: int = ROWS,
    dtype: torch.dtype = torch.float32,
    bounded: BoundedConfig | None = None,
) -> float:
    """Expected over measured, of the passes and the gradients of one step."""
    torch.manual_seed(0)
    model = build(config).to(dtype)
    objective = Objective(model, bounded=bounded)
    batch = image(rows, rows)
    targets = torch.tensor([1]) if isinstance(config.head, ClassifyConfig) else None

    def step() -> None:
        model.zero_grad()
        objective(batch, targets, seeds_of(1)).sum().backward()

    step()
    model.zero_grad()
    measured = peak_bytes(step)
    needs = activations(config, [rows * rows], dtype=dtype, bounded=bounded)
    exact = dtype if bounded is None else torch.float32
    gradients = exact.itemsize * sum(each.numel() for each in model.parameters())
    expected = gradients + needs.inside_and_meetings + needs.latents + needs.buffers
    # a file is no memory
    expected += needs.waiting if bounded is None or bounded.offload != "disk" else 0
    return expected / measured


@pytest.mark.parametrize(
    "config",
    [
        encoder(),
        encoder(checkpointing="layer"),
        encoder(exchange="bixt", after_exchange="feed_forward"),
        encoder(local_operator="xca", local_mixing="attention"),
        encoder(latents_per_group=40),
        generator("diffusion"),
        vix(),
    ],
    ids=["encoder", "recomputed", "exchange", "xca", "many latents", "diffusion", "vix"],
)
def test_a_whole_step_needs_what_is_expected(config):
    assert TOO_LITTLE < share_expected(config) < TOO_MUCH


def test_a_whole_step_of_a_decoder_needs_what_is_expected():
    assert TOO_LITTLE < share_expected(generator("autoregressive"), rows=3) < TOO_MUCH


@pytest.mark.parametrize(
    ("config", "rows", "dtype", "bounded"),
    [
        # so many groups that a third of all memory waits
        (encoder(), 8, torch.float32, BoundedConfig(groups_a_chunk=3)),
        (encoder(), ROWS, torch.float32, BoundedConfig(groups_a_chunk=3, offload="disk")),
        (encoder(), ROWS, torch.bfloat16, BoundedConfig(groups_a_chunk=7, offload="disk")),
        (encoder(latents_per_group=40), ROWS, torch.float32, BoundedConfig(groups_a_chunk=4)),
        (generator("diffusion"), ROWS, torch.float32, BoundedConfig(groups_a_chunk=3)),
    ],
    ids=["device", "disk", "bf16", "many latents", "diffusion"],
)
def test_a_bounded_step_needs_what_is_expected(config, rows, dtype, bounded):
    found = share_expected(config, rows=rows, dtype=dtype, bounded=bounded)
    assert TOO_LITTLE < found < TOO_MUCH


def test_a_bounded_step_of_a_decoder_needs_what_is_expected():
    config = generator("autoregressive", latents_per_group=1)
    found = share_expected(config, rows=3, bounded=BoundedConfig(groups_a_chunk=9))
    assert TOO_LITTLE < found < TOO_MUCH


@pytest.mark.parametrize("operator", ["softmax", "softmax_reference", *MIXERS])
def test_operators_keep_what_is_counted_without_memory(operator):
    chosen = f"{operator}@rank=8" if operator == "linformer" else operator
    place = Place(num_tokens=64, grid=(8, 8))
    mixer = mixer_of(chosen, width=32, heads=2, qkv_bias=True, place=place, rotary=None)
    x = torch.randn(1, 64, 32, requires_grad=True)
    kept = saved_bytes(mixer, x) / 4
    found = mixing(chosen, 64, 32, heads=2, place=place, dtype=torch.float32)
    assert 0.8 * kept < found < 1.3 * kept or found == kept == 0


def test_workers_that_share_an_image_need_less_but_for_keys_and_values():
    config = encoder(latents_per_group=12)
    alone, shared = (
        activations(config, [100], dtype=torch.float32, sharing=count) for count in (1, 4)
    )
    assert 3.9 < alone.inside / shared.inside < 4.1
    assert 2.5 < alone.meetings / shared.meetings < 3.9


def test_the_reference_model_needs_little_besides_its_tokens():
    """6400 px: 160,000 tokens of width 768 in bf16 wait twice, 6,400 latents meet."""
    trunk = {
        "layers": "(2)4(2)4(2)", "width": 768, "latent_width": 768, "latents_per_group": 4,
        "heads": 12, "latent_heads": 12,
    }  # fmt: skip
    source = InputConfig(bands=3, group_side_px=160, band_mean=(0.0,) * 3, band_std=(1.0,) * 3)
    head = ClassifyConfig(classes=("day", "night"), pool="tokens")
    config = model_config(head=head, trunk=trunk_config(**trunk), pixels=source, patch_px=16)
    bounded = BoundedConfig(groups_a_chunk=16, offload="disk")
    needs = activations(config, [1600], dtype=torch.bfloat16, bounded=bounded)
    assert needs.waiting == 2 * 160_000 * 768 * 2
    assert needs.inside_and_meetings + needs.latents + needs.buffers < 1e9
