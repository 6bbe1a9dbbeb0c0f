"""A dataset and decoders small enough to train in seconds, and the same training in plain torch."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fit_model.autoregressive import AutoregressiveConfig
from fit_model.denoiser import DiffusionConfig
from fit_model.groups import GroupBatch
from fit_model.model import Model
from fit_model.models import build
from fit_model.trunk_config import TrunkConfig
from jobs.assignment import RecordConfig
from jobs.batches import BatchConfig, image_seed
from jobs.targets import GenerateTarget
from jobs.train import model_config
from jobs.train_config import TrainConfig
from jobs.workers import WorkersConfig
from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import Dataset, ImageRecord, open_dataset
from pipeline.flow import preprocess
from tests.jobs.small_training import OPTIMIZER, learning_rate, order_of
from tests.pipeline.scenes import in_process, write_raster

SIDE_PX, LEVELS = 8, 17
SIZES_PX = ((8, 8), (16, 8), (8, 16), (16, 16))
TRAINING_IMAGES, TEST_IMAGES = 9, 4
TRUNK = TrunkConfig(
    layers="(1)1(1)", width=16, latent_width=16, latents_per_group=2, heads=2, latent_heads=2
)
FACES = {
    "diffusion": DiffusionConfig(patch_px=4, trunk=TRUNK),
    "autoregressive": AutoregressiveConfig(
        patch_px=4, trunk=TRUNK, num_levels=LEVELS, label_dropout=0.3
    ),
}


def write_dataset(folder: Path, *, sizes_px: tuple[tuple[int, int], ...] = SIZES_PX) -> str:
    """Images of several sizes, of two classes, with levels 0 to 16, as preprocess stores them."""
    rows = []
    draw = np.random.default_rng(0)
    for number in range(TRAINING_IMAGES + TEST_IMAGES):
        height, width = sizes_px[number % len(sizes_px)]
        kind = ("dark", "bright")[number % 2]
        low = 9 * (number % 2)
        pixels = draw.integers(low, low + 8, size=(height, width, 1)).astype(np.uint8)
        split = "train" if number < TRAINING_IMAGES else "test"
        name = f"{split}-{number:02d}"
        write_raster(folder / "images" / f"{name}.tif", pixels)
        rows.append([name, kind, low, split])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "kind", "shade", "split"], *rows])
    preprocess(
        PreprocessConfig(
            sources=str(folder / "images"),
            output=str(folder / "dataset"),
            grouping=GroupingConfig(group_side_px=SIDE_PX, patch_px=4),
            labels=str(folder / "labels.csv"),
        ),
        run_stage=in_process,
    )
    return str(folder / "dataset")


def train_config(dataset: str, face: str, *, label: str | None = "kind", **changes) -> TrainConfig:
    model = FACES[face] if label else replace(FACES[face], label_dropout=0.0)
    config = TrainConfig(
        name=f"tiny-{face}",
        dataset=dataset,
        total_steps=4,
        model=model,
        target=GenerateTarget(label=label, pixel_range=(0.0, LEVELS - 1.0)),
        experiment="tests",
        batch=BatchConfig(images_per_step=5, seed=3),
        optimizer=OPTIMIZER,
        workers=WorkersConfig(num_workers=2),
        record=RecordConfig(checkpoint_every_steps=10, log_every_steps=3),
    )
    return replace(config, **changes)


def plain_losses(config: TrainConfig) -> tuple[list[float], Model]:
    """The same training, one image at a time with torch's AdamW, and the model it gives."""
    dataset = open_dataset(config.dataset)
    torch.manual_seed(config.batch.seed)
    model = build(model_config(config, dataset))
    vectors = [each for each in model.parameters() if each.dim() == 1]
    others = [each for each in model.parameters() if each.dim() > 1]
    adamw = torch.optim.AdamW(
        [
            {"params": others, "weight_decay": OPTIMIZER.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=OPTIMIZER.betas,
    )
    records = dataset.images("train")
    found = []
    for step in range(config.total_steps):
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, config.total_steps)
        chosen = order_of(dataset, records, config.batch).batch(step)
        adamw.zero_grad()
        losses = [image_loss(model, dataset, records[i], config, step, int(i)) for i in chosen]
        loss = torch.stack(losses).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        adamw.step()
        found.append(loss.item())
    return found, model


def image_loss(
    model: Model, dataset: Dataset, record: ImageRecord, config: TrainConfig, step: int, index: int
) -> torch.Tensor:
    label = config.target.label
    classes = model.config.head.classes
    targets = None if label is None else torch.tensor([classes.index(record.labels[label])])
    seeds = torch.tensor([image_seed(config.batch.seed, step=step, image=index)])
    return model.losses(one_image(dataset, record), targets, seeds=seeds)[0]


def one_image(dataset: Dataset, record: ImageRecord) -> GroupBatch:
    """An image as the model eats it."""
    number = torch.tensor(record.groups)
    whole = torch.full_like(number, SIDE_PX)
    return GroupBatch(
        pixels=torch.tensor(np.array(dataset.read(record).pixels)),
        image=torch.zeros_like(number),
        row=number // record.grid_columns,
        column=number % record.grid_columns,
        valid_height_px=whole,
        valid_width_px=whole,
        grid_rows=torch.tensor([record.grid_rows]),
        grid_columns=torch.tensor([record.grid_columns]),
        nodata=torch.tensor([float("nan")], dtype=torch.float64),
    )
