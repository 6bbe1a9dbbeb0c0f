"""A DeepSpeed engine around a model: precision, ZeRO stage, accumulation, clipping."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fit_model import checks
from fit_model.averaging import averaged_weights, keep_average
from fit_model.bounded.config import BoundedConfig, require_chunks
from fit_model.lamb import Lamb, Total, alone
from fit_model.objective import Objective
from fit_model.optimize import ParameterGroup, layer_groups, parameter_groups
from jobs.determinism import ALGORITHMS, Algorithms

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW or LAMB with linear warm-up and cosine decay; the weights' average if wanted."""

    kind: Literal["adamw", "lamb"] = "adamw"
    """lamb scales the step of every parameter to its size, for large batches. The official one has
    lr 2e-3 to 3e-3, betas (0.9, 0.999) and does not clip."""
    lr: float = 1e-3
    weight_decay: float = 0.05
    """Of all weights and tables; biases, scales and shifts do not decay."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters with a learning rate or a weight decay of their own."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    warmup_steps: int = 50
    end_factor: float = 0.01
    """What the learning rate falls towards, as a share of the peak."""
    cosine_share: float = 1.0
    """How much of the cosine the learning rate goes through: 0.7 ends at a fifth of the peak (the
    official cosine@0.7, with end_factor 0), 0 keeps the peak."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 leaves it as it is."""
    ema_decay: float | None = None
    """Keep an average of the weights, which starts as a copy of them and moves by 1 - ema_decay a
    step; it is what the trained model then consists of."""

    def __post_init__(self) -> None:
        checks.one_of(OPTIMIZERS, **{"optimizer.kind": self.kind})
        for name in ("lr", "weight_decay", "eps", "end_factor", "clip_norm"):
            checks.finite(**{f"optimizer.{name}": (getattr(self, name),)})
        for name in ("lr", "weight_decay", "eps", "warmup_steps", "end_factor", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"optimizer.{name} is {getattr(self, name)}; it cannot be negative"
                )
        for name in ("lr", "eps"):
            if getattr(self, name) == 0:
                raise ValueError(f"optimizer.{name} is 0; give a positive number")
        if not 0.0 <= self.cosine_share <= 1.0:
            raise ValueError(f"optimizer.cosine_share is {self.cosine_share}: it lies in [0, 1]")
        first, second = self.betas
        checks.rate(**{"optimizer.betas[0]": first, "optimizer.betas[1]": second})
        if self.ema_decay is not None:
            checks.rate(**{"optimizer.ema_decay": self.ema_decay})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the state of training is held: precision and what ZeRO spreads over the workers."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """0 nothing is spread, 1 optimizer state, 2 and gradients, 3 and weights."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16 and keeps master weights and optimizer state in fp32; gradients of
    micro-steps are summed in fp32 from stage 2 on."""
    algorithms: Algorithms = "any"
    """deterministic: the same bits every time on a GPU, too, at the cost of speed, and a model that
    needs an operation without such a version is refused. On the CPU they are the same anyway."""

    def __post_init__(self) -> None:
        checks.one_of(ALGORITHMS, **{"engine.algorithms": self.algorithms})


def deepspeed_settings(
    optimizer: OptimizerConfig, engine: EngineConfig, *, accumulation: int
) -> dict[str, Any]:
    """DeepSpeed's own configuration for these settings.

    The loss arrives already weighted by every image's share of the global batch, so the batch size
    named here counts micro-steps only and is never used to scale anything.
    """
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.clip_norm,
        "zero_optimization": {"stage": engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if engine.precision == "bf16":
        settings["bf16"] = {"enabled": True}
        if engine.zero_stage >= 2:
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def require_boundable(bounded: BoundedConfig | None, *, engine: EngineConfig, face: Any) -> None:
    """Refuse what cannot go through the model a chunk of groups at a time, where that is wanted."""
    if bounded is not None and engine.zero_stage == 3:
        raise ValueError(
            "bounded needs whole weights on every worker, and engine.zero_stage 3 spreads them: "
            "take engine.zero_stage 2"
        )
    require_chunks(bounded, face=face)


def build_engine(
    model: nn.Module,
    *,
    optimizer: OptimizerConfig,
    engine: EngineConfig,
    accumulation: int,
    device: torch.device,
) -> Any:
    """Wrap the model in a DeepSpeed engine that owns the optimizer; every worker calls this."""
    if device.type == "cpu":
        # DeepSpeed would take a GPU that it sees, also one that was not asked for
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    # An operator for collectives of inference that DeepSpeed would compile for a minute, and whose
    # lock, left by a killed process, would hold up every later training without a word.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    total = _over_workers if engine.zero_stage > 0 else alone
    made = build_optimizer(model, config=optimizer, total=total)
    wrapped, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=made,
        config=deepspeed_settings(optimizer, engine, accumulation=accumulation),
        dist_init_required=False,
    )
    # bf16 without ZeRO has made a step by now, with gradients of zero, for the sake of its state
    made.state.clear()
    if engine.zero_stage == 3:
        _clear_padding(wrapped.optimizer)
    set_learning_rate(wrapped, optimizer.lr)
    return wrapped


def build_optimizer(
    model: nn.Module, *, config: OptimizerConfig, total: Total
) -> torch.optim.Optimizer:
    """The optimizer of a model, at rate 0 yet; `total` as in Lamb."""
    made = OPTIMIZERS[config.kind](model, config, total)
    if config.ema_decay is not None:
        keep_average(made, decay=config.ema_decay)
    return made


def _adamw(model: nn.Module, config: OptimizerConfig, total: Total) -> torch.optim.Optimizer:
    groups = parameter_groups(
        without_prefix(model), weight_decay=config.weight_decay, groups=config.groups
    )
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps)


def _lamb(model: nn.Module, config: OptimizerConfig, total: Total) -> torch.optim.Optimizer:
    groups = layer_groups(
        without_prefix(model), weight_decay=config.weight_decay, groups=config.groups
    )
    return Lamb(groups, lr=0.0, betas=config.betas, eps=config.eps, total=total)


def without_prefix(model: nn.Module) -> nn.Module:
    """The model itself, whose parameters have the names that users know."""
    return model.model if isinstance(model, Objective) else model


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizerConfig, Total], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "lamb": _lamb,
}


def _over_workers(values: Tensor) -> Tensor:
    """The sum of what all workers hold."""
    torch.distributed.all_reduce(values)
    return values


def _clear_padding(zero: Any) -> None:
    """Zeros where ZeRO 3 fills up the last worker's shares and leaves whatever was in memory.

    A norm of the share would count it. Gradients come with zeros there, so zeros stay.
    """
    rank = torch.distributed.get_rank()
    for parameters, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        shares = flat.detach().split([each.partition_numel() for each in parameters])
        for parameter, share in zip(parameters, shares, strict=True):
            share[max(0, parameter.ds_numel - rank * len(share)) :] = 0.0


def set_learning_rate(engine: Any, lr: float) -> None:
    """Every parameter group of the engine's optimizer at its multiple of this rate."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


Which = Literal["averaged", "latest"]
WEIGHTS: dict[str, Callable[[torch.optim.Optimizer], AbstractContextManager[None]]] = {
    "averaged": averaged_weights,
    "latest": lambda optimizer: nullcontext(),
}


def full_weights(engine: Any, *, which: Which = "averaged") -> Iterator[tuple[str, Tensor]]:
    """The model's weights by name, in fp32 on the CPU; every worker iterates to the end.

    "averaged" are the latest ones, too, where no average is kept. Under bf16 these are the master
    weights, not the rounded ones. One weight at a time travels. The engine makes no step meanwhile.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    unspread = unspread_master_weights(engine.optimizer)
    with WEIGHTS[which](engine.basic_optimizer):
        for name, parameter in engine.module.named_parameters():
            full = safe_get_full_fp32_param(parameter)
            if full is None:
                full = unspread.get(id(parameter), parameter)
            yield name, full.detach().float().cpu().clone()
    for name, buffer in engine.module.named_buffers():
        yield name, buffer.detach().cpu().clone()


def unspread_master_weights(optimizer: Any) -> dict[int, Tensor]:
    """By id of the rounded parameter: where bf16 without ZeRO keeps them, unseen by DeepSpeed."""
    rounded, masters = (getattr(optimizer, name, []) for name in ("fp16_groups", "fp32_groups"))
    return {
        id(parameter): master
        for group, master_group in zip(rounded, masters, strict=False)
        for parameter, master in zip(group, master_group, strict=True)
    }
