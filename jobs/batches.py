"""Stored images as batches of patch groups: the order is arithmetic, reading runs ahead."""

from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from fit_model.augment.config import UNCHANGED, AugmentConfig
from fit_model.augment.views import View
from fit_model.groups import GroupBatch, collate
from fit_model.pixels import GenerateConfig, require_drawable
from fit_model.stored_pixels import StoredPixels
from jobs.augmenting import draw_views, read_seen
from jobs.sharing import ALONE, Seat, by_itself
from jobs.stand_ins import StandIns
from jobs.targets import HeadConfig, Labelled
from pipeline.dataset import DamagedError, Dataset, ImageGroups, ImageRecord
from pipeline.order import Order, deal

AHEAD_BYTES = 1 << 28
"""Pixels of micro-batches that are read before their step; a single one may be larger."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one worker reads in one micro-step."""

    step: int
    images: list[int]
    weight: float
    """Of each of these images in the global batch's mean; 0 marks padding."""
    turns: tuple[int, ...] = ()
    """Of each image, how many that could stand in for it are known to be no use, it included."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The images that one worker sees in one micro-step."""

    groups: GroupBatch
    targets: Tensor | None
    """Class indices [b] or numbers [b k]; None where a model takes no label."""
    seeds: Tensor
    """What each image's chance is drawn from, [b], the same on any number of workers."""
    weights: Tensor
    """Share of the global batch's mean that each image carries, [b]; 0 marks padding."""
    groups_per_image: list[int]
    """Of whole images, whoever holds their groups; padding images are not counted."""
    images: tuple[int, ...] = ()
    """Numbers of these images."""
    turns: tuple[int, ...] = ()
    """As in Share, of the images that are here."""
    damaged: tuple[int, ...] = ()
    """Numbers of images that should be here and cannot be read; padding images are not counted."""

    @property
    def megapixels(self) -> float:
        """Megapixels of this worker's groups; padding images and pixels are not counted."""
        carried = self.weights[self.groups.image] > 0
        inside = self.groups.valid_height_px * self.groups.valid_width_px
        return float((inside * carried).sum()) / 1e6


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Which images make a step: the same ones for any number of workers."""

    images_per_step: int = 32
    """Over all workers and micro-steps together."""
    accumulation: int = 1
    """Micro-steps a step; each worker's share of the images is cut into so many: less memory."""
    seed: int = 0
    """Of the order of images, the initial weights and dropout."""
    balance_steps: int = 8
    """Steps within which images of like numbers of groups meet in a batch, so that workers are
    equally busy; 1 lets chance alone decide."""
    max_damaged_share: float = 0.05
    """Of all images; others stand in for those that cannot be read. With more, training ends."""

    def __post_init__(self) -> None:
        for name in ("images_per_step", "accumulation", "balance_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"batch.{name} {getattr(self, name)} must be at least 1")
        if not 0.0 <= self.max_damaged_share < 1.0:
            raise ValueError(f"batch.max_damaged_share {self.max_damaged_share} must lie in [0, 1)")
        if self.seed < 0:
            raise ValueError(f"batch.seed {self.seed} must not be negative")


def require_images(config: BatchConfig, *, num_sets: int) -> None:
    """Refuse steps of fewer images than there are group sets and micro-steps."""
    shares = num_sets * config.accumulation
    if config.images_per_step < shares:
        raise ValueError(
            f"batch.images_per_step {config.images_per_step} leaves some of {num_sets} workers x "
            f"{config.accumulation} micro-steps without an image: take at least {shares}, or less "
            "accumulation, or more workers an image (parallel.groups)"
        )


class Feed:
    """Reads one worker's micro-batches, a few ahead of the training step.

    Args:
        dataset: where the images lie.
        labelled: which of them are trained on.
        head: what is learned.
        config: which of them make a step.
        augment: what chance changes about them.
        seat: the worker's place among all.
        compare: gives the turns of every worker that shares these images, this one's included.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        labelled: Labelled,
        head: HeadConfig,
        config: BatchConfig,
        augment: AugmentConfig = UNCHANGED,
        seat: Seat = ALONE,
        compare: Callable[[tuple[int, ...]], list[tuple[int, ...]]] = by_itself,
    ) -> None:
        self.dataset = dataset
        self.labelled = labelled
        self.head = head
        self.config = config
        self.augment = augment
        self.seat = seat
        self.compare = compare
        self.order = Order(
            digest=dataset.info.digest,
            seed=config.seed,
            groups=[augment.most_groups(len(record.groups)) for record in labelled.records],
            batch_images=config.images_per_step,
            balance_steps=config.balance_steps,
        )
        self.stand_ins = StandIns(
            self.order, records=labelled.records, max_share=config.max_damaged_share
        )

    def stream(
        self, first_step: int, last_step: int, *, around: Container[int] = (), ahead: int = 3
    ) -> Iterator[Batch]:
        """Micro-batches of steps first_step to last_step - 1, but for those gone around.

        Up to `ahead` of them are being read meanwhile, as long as these hold AHEAD_BYTES at most.
        """
        steps = [step for step in range(first_step, last_step) if step not in around]
        places = deque(product(steps, range(self.config.accumulation)))
        # from afar an answer takes long to begin, so all of them are asked for at once
        readers = 1 if self.dataset.place.is_local else ahead + 1
        reader = ThreadPoolExecutor(max_workers=readers, thread_name_prefix="feed")
        waiting: deque[tuple[Share, Future[Batch], int]] = deque()
        try:
            while places or waiting:
                while places and len(waiting) <= ahead:
                    size = self.num_bytes(share := self.share(*places[0]))
                    if waiting and size + sum(each for *_, each in waiting) > AHEAD_BYTES:
                        break
                    waiting.append((share, reader.submit(self.read, share), size))
                    places.popleft()
                share, found, _ = waiting.popleft()
                yield self.agreed(share, found.result())
        finally:
            reader.shutdown(cancel_futures=True)

    def share(self, step: int, part: int) -> Share:
        """Part `part` of this worker's share of the global batch of `step`.

        Weights make the sum over all parts and group sets the mean over the global batch. A worker
        whose part is empty reads the step's smallest image at weight 0: it must take part in
        collectives.
        """
        indices = self.order.batch(step)
        sizes = self.order.groups[indices].tolist()
        dealt = deal(sizes, num_workers=self.seat.num_sets, num_parts=self.config.accumulation)
        mine = dealt[self.seat.set][part]
        if not mine:
            return Share(step=step, images=[int(indices[np.argmin(sizes)])], weight=0.0)
        return Share(step=step, images=indices[mine].tolist(), weight=1.0 / len(indices))

    def num_bytes(self, share: Share) -> int:
        """Pixels of these images, whoever holds their groups."""
        return sum(
            self.augment.most_groups(len(record.groups))
            * self.dataset.info.group_side_px**2
            * record.bands
            * np.dtype(record.dtype).itemsize
            for record in map(self.labelled.records.__getitem__, share.images)
        )

    def read(self, share: Share) -> Batch:
        """These images, or who stands in for those that are damaged.

        Whole images are damaged in every step. A crop may lie beside the damage, and what earlier
        steps came upon must not decide, or a training that goes on would see other images.
        """
        whole = self.augment.crop_groups is None
        unreadable = set(self.stand_ins.known() if whole else ())
        while True:
            found = self.stand_ins.of(
                share.images, step=share.step, turns=share.turns, unreadable=unreadable
            )
            try:
                return replace(
                    self._read(replace(share, images=found.images)),
                    turns=found.turns,
                    damaged=found.damaged if share.weight else (),
                )
            except DamagedError as error:
                unreadable.add(self.stand_ins.found(error))

    def _read(self, share: Share) -> Batch:
        records = [self.labelled.records[index] for index in share.images]
        values, seed = self.labelled.values, self.config.seed
        seeds = [image_seed(seed, step=share.step, image=index) for index in share.images]
        views = draw_views(records, seeds, config=self.augment, seat=self.seat)
        counts = [len(each.groups) for each in records]
        if views is not None:
            counts = [len(each.stored) for each in views]
        return Batch(
            groups=read_images(self.dataset, records, head=self.head, seat=self.seat, views=views),
            targets=None if values is None else values[share.images],
            seeds=torch.tensor(seeds),
            weights=torch.full((len(records),), share.weight),
            groups_per_image=counts if share.weight else [],
            images=tuple(share.images) if share.weight else (),
        )

    def agreed(self, share: Share, batch: Batch) -> Batch:
        """The batch with those images that every worker that shares it could read of its part."""
        while len(told := set(self.compare(batch.turns))) > 1:
            furthest = tuple(map(max, zip(*told, strict=True)))
            batch = self.read(replace(share, turns=furthest))
        return batch


def image_seed(seed: int, *, step: int, image: int) -> int:
    """Seed of what chance decides about an image (by its number) in one step; 63 bits."""
    return int(np.random.SeedSequence([seed, step, image]).generate_state(1, np.uint64)[0] >> 1)


def read_images(
    dataset: Dataset,
    records: Sequence[ImageRecord],
    *,
    head: HeadConfig,
    seat: Seat = ALONE,
    views: Sequence[View] | None = None,
) -> GroupBatch:
    """A worker's share of the groups of these images, or of views of them, left where they lie.

    Pixels that a model must not learn to make are refused here, by their image: later, on an
    accelerator, nobody looks at values any more.
    """
    if views is None:
        images = dataset.at_once(
            lambda record, run: as_batch(dataset.read(record, groups=run), record),
            records,
            seat.runs(records),
        )
    else:
        runs = seat.runs_of([each.row.tolist() for each in views])
        images = dataset.at_once(
            lambda record, part: part.of(
                as_batch(read_seen(dataset, record, part.stored.tolist()), record)
            ),
            records,
            [each.part(run) for each, run in zip(views, runs, strict=True)],
        )
    if isinstance(head, GenerateConfig):
        for record, groups in zip(records, images, strict=True):
            try:
                require_drawable(groups, config=head)
            except ValueError as error:
                raise ValueError(f"image {record.image_id!r}: {error}") from error
    return collate(images)


def as_batch(groups: ImageGroups, record: ImageRecord) -> GroupBatch:
    """Patch groups as a batch; the one place where Arrow's arrays become the model's."""
    nodata = np.nan if record.nodata is None else record.nodata
    return GroupBatch(
        pixels=StoredPixels(groups.pixels),
        image=torch.zeros(len(groups.pixels), dtype=torch.int64),
        row=torch.from_numpy(groups.row.astype(np.int64)),
        column=torch.from_numpy(groups.column.astype(np.int64)),
        valid_height_px=torch.from_numpy(groups.valid_height_px.astype(np.int64)),
        valid_width_px=torch.from_numpy(groups.valid_width_px.astype(np.int64)),
        grid_rows=torch.tensor([record.grid_rows]),
        grid_columns=torch.tensor([record.grid_columns]),
        nodata=torch.tensor([nodata], dtype=torch.float64),
    )
