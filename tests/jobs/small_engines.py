"""A model of a few weights in engines of every kind, its checkpoints, and workers without Ray."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

from jobs.assignment import RecordConfig
from jobs.checkpoints import Checkpoints
from jobs.engine import (
    EngineConfig,
    OptimizerConfig,
    build_engine,
    full_weights,
    set_learning_rate,
)
from jobs.engine_state import states_kept
from jobs.events import Event
from jobs.manifests import Progress
from jobs.run_record import RunRecord
from pipeline.storage import Location

RATES = (0.02, 0.05, 0.01, 0.03)
DECAY = 0.7
WORKERS = 2
LAMB = OptimizerConfig(
    kind="lamb", weight_decay=0.1, betas=(0.9, 0.99), clip_norm=0.0, ema_decay=DECAY
)
ADAMW = OptimizerConfig(
    kind="adamw", weight_decay=0.1, betas=(0.9, 0.99), clip_norm=0.0, ema_decay=DECAY
)


class Small(nn.Module):
    """Odd sizes, which two workers do not share evenly, weights that start at zero, a buffer."""

    def __init__(self, *, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Parameter(torch.randn(3))
        self.wide = nn.Linear(3, 5)
        self.norm = nn.LayerNorm(5)
        self.last = nn.Linear(5, 7)
        nn.init.zeros_(self.last.weight)
        self.register_buffer("drawn", torch.randn(2, 2))
        self.register_buffer("not_saved", torch.randn(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.table.dtype) + self.table
        return self.last(self.norm(torch.tanh(self.wide(x))))


def loss(outputs: torch.Tensor, step: int) -> torch.Tensor:
    return ((outputs.float() - torch.arange(7) / 3 - step) ** 2).mean()


def inputs(step: int, rank: int) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(100 * step + rank))


@dataclass(frozen=True)
class Variant:
    optimizer: OptimizerConfig
    stage: int
    precision: str = "fp32"

    @property
    def family(self) -> tuple[OptimizerConfig, str]:
        """What a checkpoint must have in common with the engine."""
        return self.optimizer, self.precision


VARIANTS = {
    **{f"lamb {stage}": Variant(LAMB, stage) for stage in range(4)},
    **{f"lamb bf16 {stage}": Variant(LAMB, stage, "bf16") for stage in range(4)},
    **{f"adamw {stage}": Variant(ADAMW, stage) for stage in (2, 3)},
    "adamw bf16 0": Variant(ADAMW, 0, "bf16"),
}


def made(variant: Variant, *, seed: int) -> Any:
    return build_engine(
        Small(seed=seed),
        optimizer=variant.optimizer,
        engine=EngineConfig(zero_stage=variant.stage, precision=variant.precision),
        accumulation=1,
        device=torch.device("cpu"),
    )


def weights(engine: Any, which: str) -> dict[str, np.ndarray]:
    """The weights alone, under their names."""
    named = dict(full_weights(engine, which=which))
    return {name: each.numpy() for name, each in named.items() if name in dict(parameters())}


def parameters() -> Iterator[tuple[str, nn.Parameter]]:
    return Small(seed=0).named_parameters()


def one_step(engine: Any, step: int) -> float:
    """One optimizer step on the batch of WORKERS workers, by however many; this worker's loss."""
    set_learning_rate(engine, RATES[step % len(RATES)])
    share = range(engine.global_rank, WORKERS, engine.world_size)
    found = loss(engine(torch.cat([inputs(step, each) for each in share])), step)
    engine.backward(found)
    engine.step()
    return float(found.detach())


def train(engine: Any, steps: range) -> list[dict[str, np.ndarray]]:
    """The weights after each of these steps."""
    history = []
    for step in steps:
        one_step(engine, step)
        history.append(weights(engine, "latest"))
    return history


def checkpoints(
    folder: str, variant: Variant, *, last_step: int = 99, **record: Any
) -> tuple[Checkpoints, list[Event]]:
    """The hand of this worker in checkpoints that lie in a folder, and what it will tell."""
    told: list[Event] = []
    hand = Checkpoints(
        Location.of(folder),
        config=RecordConfig(**record),
        states=states_kept(variant.optimizer),
        origin=RunRecord(run_id="run", config={"a.b": 1}, digest="d" * 64),
        last_step=last_step,
        device=torch.device("cpu"),
        tell=told.append,
    )
    return hand, told


def stitched(folder: Path) -> dict[str, np.ndarray]:
    """All that a checkpoint holds, as another reader puts it together: by kind/NAME, flat."""
    manifest = json.loads((folder / "manifest.json").read_text())
    pieces: dict[str, list[tuple[int, np.ndarray]]] = {}
    for part in manifest["parts"]:
        for key, values in load_file(folder / part["name"]).items():
            name, _, start = key.rpartition("@")
            pieces.setdefault(name, []).append((int(start), values))
    return {
        name: np.concatenate([values for _, values in sorted(found, key=lambda each: each[0])])
        for name, found in pieces.items()
    }


uninitialized = torch.empty


def dirty_empty(*args: Any, **settings: Any) -> torch.Tensor:
    """Memory that was not written to, and looks like it: what fills up shares must not count."""
    found = uninitialized(*args, **settings)
    small = found.is_floating_point() and found.numel() < 100
    return found.detach().fill_(7.0) if small else found


SAVED_AFTER, MORE_STEPS = 2, 2


def on_two(folder: str, rank: int) -> dict[str, Any]:
    """Every variant in one go, and in two with a checkpoint between them; then two steps more."""
    torch.empty = dirty_empty
    return {name: in_two_goes(f"{folder}/{name}", each) for name, each in VARIANTS.items()}


def in_two_goes(folder: str, variant: Variant) -> dict[str, Any]:
    """What one worker sees of it."""
    engine = made(variant, seed=1)
    history = [weights(engine, "latest"), *train(engine, range(SAVED_AFTER))]
    hand, _ = checkpoints(folder, variant)
    hand.save(engine, Progress(step=SAVED_AFTER), wait=True)
    saved = snapshot(engine)
    losses = []
    for step in range(SAVED_AFTER, len(RATES)):
        losses.append(mean_loss(engine, step))
        history.append(weights(engine, "latest"))
    averaged, after = (weights(engine, which) for which in ("averaged", "latest"))
    losses += [mean_loss(engine, len(RATES) + more) for more in range(MORE_STEPS)]
    again = made(variant, seed=2)
    hand, _ = checkpoints(folder, variant)
    hand.restore(again)
    back = snapshot(again)
    train(again, range(SAVED_AFTER, len(RATES)))
    return {
        "history": history,
        "averaged": averaged,
        "after": after,
        "saved": saved,
        "back": back,
        "losses": losses,
        "resumed": weights(again, "latest"),
        "resumed average": weights(again, "averaged"),
    }


def snapshot(engine: Any) -> dict[str, np.ndarray]:
    """What an engine has learned, and what it says: the same wherever the same state is."""
    learned = {
        f"{which} {name}": each
        for which in ("latest", "averaged")
        for name, each in weights(engine, which).items()
    }
    says = engine(inputs(9, 0)).detach().float().numpy()
    return {**learned, "says": says, "drawn": engine.module.drawn.float().numpy()}


def mean_loss(engine: Any, step: int) -> float:
    """Of the whole batch, in one optimizer step."""
    found = torch.tensor(one_step(engine, step), dtype=torch.float64)
    torch.distributed.all_reduce(found)
    return float(found) / engine.world_size
