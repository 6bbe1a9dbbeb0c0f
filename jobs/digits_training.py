"""One run of `farreach bench digits`: a model, a seed and a learning rate, from start to test."""

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from fit_model import checks
from fit_model.groups import GroupBatch
from fit_model.model import Model
from fit_model.models import build
from fit_model.optimize import learning_rate_factor, parameter_groups
from jobs.digit_canvases import CanvasConfig, Canvases, held_out_canvases, training_canvases
from jobs.digits_models import SizeConfig, batch_of, model_config

BETAS = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """How a model is trained; the same for all."""

    steps: int = 1000
    batch: int = 32
    """Canvases a step."""
    learning_rates: tuple[float, ...] = (3e-3, 6e-3)
    """Every model has the one that serves it best on validation canvases, with the first seed."""
    warmup_steps: int = 100
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    places: int = 4
    """Canvases of every held-out digit."""

    def __post_init__(self) -> None:
        checks.positive(steps=self.steps, batch=self.batch, places=self.places)
        given = self.learning_rates
        if not given or min(given) <= 0 or len(set(given)) < len(given):
            raise ValueError(
                f"learning_rates is {list(given)}: give at least one above 0, and each once"
            )
        if self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}: it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all runs have in common."""

    canvas: CanvasConfig = field(default_factory=CanvasConfig)
    size: SizeConfig = field(default_factory=SizeConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)

    def __post_init__(self) -> None:
        if self.canvas.side_px % self.size.group_px:
            raise ValueError(
                f"canvas.side_px {self.canvas.side_px} is no multiple of "
                f"size.group_px {self.size.group_px}"
            )

    def model(self, body: str, operator: str) -> Model:
        """A model with fresh weights, drawn from torch's global generator."""
        side_px = self.canvas.side_px
        return build(model_config(body, operator, size=self.size, side_px=side_px))

    @property
    def tokens_per_step(self) -> int:
        """Patches of the canvases of a step, whatever a body makes of them."""
        return self.recipe.batch * (self.canvas.side_px // self.size.patch_px) ** 2


@dataclass(frozen=True, kw_only=True)
class Run:
    """What tells a run from the others."""

    body: str
    operator: str
    seed: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run; accuracies are shares of canvases."""

    run: Run
    validation: float
    test: float
    training_loss: float | None
    """Mean of the last tenth of the steps, in nats; None where it is no number any more."""
    parameters: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it, in one level."""
        values = asdict(self)
        return values.pop("run") | values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Outcome":
        """The inverse of to_dict."""
        names = ("body", "operator", "seed", "learning_rate")
        rest = {name: value for name, value in values.items() if name not in names}
        return cls(run=Run(**{name: values[name] for name in names}), **rest)


class Trainer:
    """A model and its optimizer."""

    def __init__(self, model: Model, recipe: RecipeConfig, *, learning_rate: float) -> None:
        self.model = model
        self.recipe = recipe
        self.learning_rate = learning_rate
        groups = parameter_groups(model, weight_decay=recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS)

    def step(self, canvases: Canvases, *, number: int) -> Tensor:
        """Step number `number`, from 0; the loss before it."""
        factor = learning_rate_factor(
            number, warmup_steps=self.recipe.warmup_steps, total_steps=self.recipe.steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        batch, seeds = self.batch(canvases)
        labels = torch.from_numpy(canvases.labels)
        loss = self.model.losses(batch, labels, seeds=seeds).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def accuracy(self, canvases: Canvases) -> float:
        """The share of canvases answered right."""
        self.model.eval()
        right = 0
        for start in range(0, len(canvases.labels), self.recipe.batch):
            few = slice(start, start + self.recipe.batch)
            part = Canvases(pixels=canvases.pixels[few], labels=canvases.labels[few])
            batch, seeds = self.batch(part)
            answers = self.model.measures(batch, None, seeds=seeds).argmax(1)
            right += int((answers == torch.from_numpy(part.labels)).sum())
        return right / len(canvases.labels)

    def batch(self, canvases: Canvases) -> tuple[GroupBatch, Tensor]:
        """What the model eats, and a seed an image, of which classifiers make no use."""
        batch = batch_of(canvases, group_px=self.model.config.input.group_side_px)
        return batch, torch.zeros(batch.num_images, dtype=torch.int64)


def train(run: Run, setup: Setup) -> Outcome:
    """Train and test one model, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    started_s = time.perf_counter()
    recipe = setup.recipe
    model = setup.model(run.body, run.operator)
    trainer = Trainer(model, recipe, learning_rate=run.learning_rate)
    losses = []
    for number in range(recipe.steps):
        canvases = training_canvases(setup.canvas, seed=run.seed, step=number, count=recipe.batch)
        losses.append(trainer.step(canvases, number=number))
    validation, test = (
        trainer.accuracy(held_out_canvases(setup.canvas, part, places=recipe.places))
        for part in ("validation", "test")
    )
    loss = float(torch.stack(losses[-max(1, recipe.steps // 10) :]).mean())
    return Outcome(
        run=run,
        validation=validation,
        test=test,
        training_loss=loss if math.isfinite(loss) else None,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=time.perf_counter() - started_s,
    )
