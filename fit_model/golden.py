"""What golden files hold, and this code's answer to each kind of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fit_model.autoregressive import Decoder, decode_images
from fit_model.denoiser import Denoiser, DiffusionConfig
from fit_model.denoising import Steps
from fit_model.encoder import Encoder, encode_images
from fit_model.groups import Places
from fit_model.layout import ImageLayout
from fit_model.noise import schedule
from fit_model.official import (
    decoder_config,
    decoder_weights,
    denoiser_config,
    denoiser_weights,
    encoder_config,
    encoder_weights,
)
from fit_model.official_layers import fill
from fit_model.samplers import SamplingConfig, sample
from fit_model.subpixels import ORDERS, sequence_order, shifted
from fit_model.tokens import patches_of

Arrays = dict[str, np.ndarray]
AR_LEVELS = 256


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One golden file, taken apart."""

    config: Mapping[str, Any]
    weights: Arrays
    inputs: Arrays
    outputs: Arrays
    gradients: Arrays = field(default_factory=dict)
    """`grads/NAME` of inputs and `weight_grads/NAME` of weights, where a file has them."""

    def take(self, name: str) -> torch.Tensor:
        """An input; ValueError where there is none."""
        if name not in self.inputs:
            raise ValueError(f"inputs: {name} is missing; there are: {', '.join(self.inputs)}")
        return torch.from_numpy(self.inputs[name])

    def setting(self, name: str) -> Any:
        """A setting; ValueError where there is none."""
        if name not in self.config:
            raise ValueError(f"config: the setting {name!r} is missing")
        return self.config[name]

    @property
    def num_tokens(self) -> int:
        """Data tokens of a group."""
        return self.config["x_size"] // self.config["num_groups"]


def encode(golden: Golden) -> Arrays:
    """Outputs of an encoder file: data tokens `x` and `latents`."""
    others = [name for name in golden.inputs if name != "x"]
    if "x" not in golden.inputs or len(others) > 1:
        raise ValueError(f"an encoder takes x and names of groups, not {', '.join(golden.inputs)}")
    x, y = golden.take("x"), golden.take(others[0]) if others else None
    config = encoder_config(golden.config, identities=None if y is None else y.shape[-1])
    encoder = Encoder(config, num_tokens=golden.num_tokens, inputs=x.shape[-1])
    fill(encoder, encoder_weights(golden.weights, config))
    encoded = encode_images(encoder.eval(), x, identity=y)
    flat = {"x": encoded.tokens, "latents": encoded.latents}
    return {name: value.unflatten(0, x.shape[:2]).numpy() for name, value in flat.items()}


def load_denoiser(golden: Golden, config: DiffusionConfig, *, num_classes: int) -> Denoiser:
    """The official network under our names."""
    denoiser = Denoiser(
        config,
        num_tokens=golden.num_tokens,
        inputs=golden.setting("out_dim"),
        num_classes=num_classes,
    )
    fill(denoiser, denoiser_weights(golden.weights, config, num_classes=num_classes))
    return denoiser.eval()


def in_one_row(x: torch.Tensor) -> Places:
    """Places of the groups of x, (b, t, n, c)."""
    return Places.in_one_row(num_images=x.shape[0], num_groups=x.shape[1], device=x.device)


def denoise(golden: Golden) -> Arrays:
    """Outputs of a denoiser file: the prediction `x` and the raw `latents`."""
    x, gamma = golden.take("x"), golden.take("time").flatten()
    classes = golden.take("cond") if "cond" in golden.inputs else None
    before = golden.take("latents_prev").flatten(0, 1) if "latents_prev" in golden.inputs else None
    config = denoiser_config(golden.config)
    num_classes = 0 if classes is None else classes.shape[-1]
    denoiser = load_denoiser(golden, config, num_classes=num_classes)
    found = denoiser(x.flatten(0, 1), in_one_row(x), gamma=gamma, classes=classes, before=before)
    flat = {"x": found.patches, "latents": found.latents}
    return {name: value.unflatten(0, x.shape[:2]).numpy() for name, value in flat.items()}


def draw_samples(golden: Golden) -> Arrays:
    """Outputs of a sampler file: the last data prediction `samples`."""
    noises = golden.take("noises")
    classes = golden.take("labels") if "labels" in golden.inputs else None
    config, official = denoiser_config(golden.config), golden.config
    num_classes = 0 if classes is None else classes.shape[-1]
    denoiser = load_denoiser(golden, config, num_classes=num_classes)
    drawn: Iterator[torch.Tensor] = (noise.flatten(0, 1) for noise in noises)

    def draw() -> torch.Tensor:
        noise = next(drawn, None)
        if noise is None:
            raise ValueError(f"inputs: {len(noises)} noises are too few for this sampler")
        return noise

    sampling = SamplingConfig(
        sampler=official.get("sampler", "ddim"),
        steps=golden.setting("iterations"),
        guidance=official.get("guidance", 0.0),
        time_shift=official.get("td", 0.0),
    )
    steps = Steps(
        denoiser, config, in_one_row(noises[0]), classes=classes, guidance=sampling.guidance
    )
    samples = sample(
        steps,
        draw(),
        config=sampling,
        schedule=schedule(golden.setting("schedule")),
        prediction=config.prediction,
        limit=config.input_scale,
        draw=draw,
    )
    return {"samples": samples.unflatten(0, noises.shape[1:3]).numpy()}


def decode(golden: Golden) -> Arrays:
    """Outputs of an autoregressive file: `logits` of tokens that are already shifted."""
    tokens = golden.take("tokens").long()
    config = decoder_config(golden.config)
    decoder = Decoder(config, num_tokens=golden.num_tokens)
    fill(decoder, decoder_weights(golden.weights, config))
    return {"logits": decode_images(decoder.eval(), tokens).numpy()}


def schedules(golden: Golden) -> Arrays:
    """Outputs of a schedules file: gamma of every time, under the name of its schedule."""
    times = golden.take("t")
    return {name: schedule(name)(times).numpy() for name in golden.outputs}


def order_tokens(golden: Golden) -> Arrays:
    """Outputs of a token order file: grouped tokens, and shifted inputs and targets in order."""
    groups = squares(golden.take("image"), side_px=golden.setting("sub_image_px"))
    tokens = [patches_of(each, patch_px=golden.setting("patch_px")) for each in groups]
    found = {"group_tokens": torch.stack(tokens).numpy()}
    image = golden.take("ar_image")
    patch_px = golden.setting("ar_patch_px")
    levels = (image * (AR_LEVELS - 1)).long()  # cut off, not rounded, as the official code does
    for order in ORDERS:
        inputs, targets = zip(
            *(in_order(each, patch_px=patch_px, order=order) for each in levels), strict=True
        )
        found[f"ar_input_{order}"] = torch.stack(inputs).numpy()
        found[f"ar_target_{order}"] = torch.stack(targets).numpy()
    return found


def squares(images: torch.Tensor, *, side_px: int) -> torch.Tensor:
    """Images (b, height, width, bands) cut into squares (b, t, side, side, bands), row by row."""
    split = images.unflatten(1, (-1, side_px)).unflatten(3, (-1, side_px))
    return split.transpose(2, 3).flatten(1, 2)


def in_order(
    levels: torch.Tensor, *, patch_px: int, order: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of one image, as the decoder is shown them."""
    rows, columns = levels.shape[0] // patch_px, levels.shape[1] // patch_px
    number = torch.arange(rows * columns)
    places = Places(
        image=torch.zeros_like(number),
        row=number // columns,
        column=number % columns,
        grid_rows=torch.tensor([rows]),
        grid_columns=torch.tensor([columns]),
    )
    patches = squares(levels[None], side_px=patch_px).flatten(2)[0]
    targets = patches[sequence_order(places, order=order)]
    images = ImageLayout.of(places.image, num_images=1, latents_per_group=1)
    return shifted(targets, images), targets


KINDS: dict[str, Callable[[Golden], Arrays]] = {
    "encoder": encode,
    "denoiser": denoise,
    "sampler": draw_samples,
    "autoregressive": decode,
    "schedules": schedules,
    "token_order": order_tokens,
}
