"""A dataset and a model small enough to train in seconds, and the same training in plain torch."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fit_model.encoder import EncoderConfig
from fit_model.groups import GroupBatch
from fit_model.model import Model, ModelConfig
from fit_model.models import build
from fit_model.trunk_config import TrunkConfig
from jobs.assignment import Assignment, RecordConfig
from jobs.batches import BatchConfig
from jobs.engine import EngineConfig, OptimizerConfig
from jobs.run_record import RunRecord
from jobs.targets import ClassifyTarget, RegressTarget
from jobs.train import assignment, model_config
from jobs.train_config import TrainConfig
from jobs.workers import WorkersConfig
from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import Dataset, ImageRecord, open_dataset
from pipeline.flow import preprocess
from pipeline.order import Order
from tests.pipeline.scenes import in_process, noise, write_raster

SIDE_PX, NODATA = 16, 0
SIZES_PX = ((16, 16), (20, 40), (48, 32), (33, 17))
TRAINING_IMAGES = 9  # in batches of 8 or 4 the last of an epoch holds a single image
TEST_IMAGES = 6
WITHOUT_CONTENT = "train-empty"
OPTIMIZER = OptimizerConfig(lr=1e-3, weight_decay=0.1, warmup_steps=2, clip_norm=0.5)
TRUNK = TrunkConfig(
    layers="(1)1(1)1", width=16, latent_width=16, latents_per_group=2, heads=2, latent_heads=2
)


def write_images(folder: Path, *, sizes_px: tuple[tuple[int, int], ...] = SIZES_PX) -> None:
    """Rasters of several sizes; bright ones and dark ones, one with a missing corner."""
    rows = []
    for number in range(TRAINING_IMAGES + TEST_IMAGES):
        height, width = sizes_px[number % len(sizes_px)]
        bright = number % 3 != 0
        pixels = noise(height, width, 2, seed=number, dtype="uint8").astype("uint16")
        pixels = pixels + (150 if bright else 30)
        if number == 2:
            pixels[:SIDE_PX, :SIDE_PX] = NODATA
        split = "train" if number < TRAINING_IMAGES else "test"
        name = f"{split}-{number:02d}"
        write_raster(folder / f"{name}.tif", pixels, nodata=NODATA)
        rows.append([name, "bright" if bright else "dark", float(pixels.mean()), 7, 0.1, split])
    write_raster(folder / f"{WITHOUT_CONTENT}.tif", np.zeros((20, 20, 2), np.uint16), nodata=NODATA)
    rows.append([WITHOUT_CONTENT, "dark", 3.0, 7, 0.1, "train"])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "kind", "amount", "seven", "tenth", "split"], *rows])


def write_dataset(images: Path, output: Path) -> str:
    """The images in groups, as `farreach preprocess` stores them; where they lie."""
    grouping = GroupingConfig(group_side_px=SIDE_PX, patch_px=8)
    preprocess(
        PreprocessConfig(
            sources=str(images),
            output=str(output),
            grouping=grouping,
            labels=str(images / "labels.csv"),
        ),
        run_stage=in_process,
    )
    return str(output)


def train_config(dataset: str, **changes) -> TrainConfig:
    config = TrainConfig(
        name="tiny",
        dataset=dataset,
        total_steps=5,
        model=EncoderConfig(patch_px=8, trunk=TRUNK),
        target=ClassifyTarget(label="kind"),
        experiment="tests",
        batch=BatchConfig(images_per_step=8, seed=3),
        optimizer=OPTIMIZER,
        engine=EngineConfig(zero_stage=2),
        workers=WorkersConfig(num_workers=2),
        record=RecordConfig(checkpoint_every_steps=10, log_every_steps=3),
    )
    return replace(config, **changes)


def told(config: TrainConfig, folder: Path, *, inbox: Any) -> Assignment:
    """What its workers are told by a driver that keeps the run in this folder."""
    config = replace(config, storage_path=str(folder))
    model = model_config(config, open_dataset(config.dataset))
    origin = RunRecord(run_id="r", config={}, digest="d" * 64)
    return assignment(config, model, origin=origin, inbox=inbox)


@dataclass
class Plain:
    """The same training without workers, batches or engine: one image at a time, torch's AdamW."""

    dataset: Dataset
    config: TrainConfig
    model_config: ModelConfig
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def train(self) -> Model:
        torch.manual_seed(self.config.batch.seed)
        model = build(self.model_config)
        # vectors are biases, or the scales and shifts of norms and codes
        vectors = [each for each in model.parameters() if each.dim() == 1]
        others = [each for each in model.parameters() if each.dim() > 1]
        adamw = torch.optim.AdamW(
            [
                {"params": others, "weight_decay": OPTIMIZER.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=OPTIMIZER.betas,
        )
        for step in range(self.config.total_steps):
            for group in adamw.param_groups:
                group["lr"] = learning_rate(step, self.config.total_steps)
            adamw.zero_grad()
            loss = torch.stack([self.loss(model, record) for record in self.images(step)]).mean()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
            self.norms.append(norm.item())
            adamw.step()
            self.losses.append(loss.item())
        return model.eval()

    def images(self, step: int) -> list[ImageRecord]:
        records = [each for each in self.dataset.images("train") if each.groups]
        order = order_of(self.dataset, records, self.config.batch)
        return [records[index] for index in order.batch(step)]

    def loss(self, model: Model, record: ImageRecord) -> torch.Tensor:
        outputs = model(one_image(self.dataset, record))
        head = self.model_config.head
        if isinstance(self.config.target, RegressTarget):
            mean, std = torch.tensor(head.target_mean), torch.tensor(head.target_std)
            truth = torch.tensor([record.labels[name] for name in head.targets])
            return ((outputs - (truth - mean) / std) ** 2).mean()
        truth = torch.tensor([head.classes.index(record.labels["kind"])])
        return torch.nn.functional.cross_entropy(outputs, truth)


def order_of(dataset: Dataset, records: Sequence[ImageRecord], batch: BatchConfig) -> Order:
    """Which of the records each step sees."""
    return Order(
        digest=dataset.info.digest,
        seed=batch.seed,
        groups=[len(record.groups) for record in records],
        batch_images=batch.images_per_step,
        balance_steps=batch.balance_steps,
    )


def one_image(dataset: Dataset, record: ImageRecord) -> GroupBatch:
    """An image as the model eats it, put together from what the record says."""
    number = torch.tensor(record.groups)
    row, column = number // record.grid_columns, number % record.grid_columns
    return GroupBatch(
        pixels=torch.tensor(np.array(dataset.read(record).pixels)),
        image=torch.zeros_like(number),
        row=row,
        column=column,
        valid_height_px=(record.height_px - row * SIDE_PX).clamp(max=SIDE_PX),
        valid_width_px=(record.width_px - column * SIDE_PX).clamp(max=SIDE_PX),
        grid_rows=torch.tensor([record.grid_rows]),
        grid_columns=torch.tensor([record.grid_columns]),
        nodata=torch.tensor([float(NODATA)], dtype=torch.float64),
    )


def learning_rate(step: int, total_steps: int) -> float:
    """Linear to the peak, then half a cosine down to the end."""
    warmup, end = OPTIMIZER.warmup_steps, OPTIMIZER.end_factor
    if step < warmup:
        return OPTIMIZER.lr * (step + 1) / warmup
    angle = np.pi * (step - warmup) / (total_steps - warmup)
    return OPTIMIZER.lr * (end + (1 - end) * (1 + np.cos(angle)) / 2)
