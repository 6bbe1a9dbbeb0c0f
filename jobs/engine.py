"""A DeepSpeed engine around a model: precision, ZeRO stage, accumulation, clipping."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fit_model.optimize import parameter_groups

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 50
    end_factor: float = 0.01
    """What the learning rate falls towards, as a share of the peak."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 leaves it as it is."""

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "warmup_steps", "end_factor", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"optimizer.{name} is {getattr(self, name)}; it cannot be negative"
                )
        if self.lr == 0:
            raise ValueError("optimizer.lr is 0: nothing would be learned; give a positive rate")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the state of training is held: precision and what ZeRO spreads over the workers."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """0 nothing is spread, 1 optimizer state, 2 and gradients, 3 and weights."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16 and keeps master weights and optimizer state in fp32; gradients of
    micro-steps are summed in fp32 from stage 2 on."""


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
    adamw = torch.optim.AdamW(
        parameter_groups(model, weight_decay=optimizer.weight_decay),
        lr=optimizer.lr,
        betas=optimizer.betas,
    )
    wrapped, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=adamw,
        config=deepspeed_settings(optimizer, engine, accumulation=accumulation),
        dist_init_required=False,
    )
    return wrapped


def set_learning_rate(engine: Any, lr: float) -> None:
    """Every parameter group of the engine's optimizer at this rate."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def full_weights(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """The model's weights by name, in fp32 on the CPU; every worker iterates to the end.

    Under bf16 these are the master weights, not the rounded ones. One weight at a time travels.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    unspread = _unspread_master_weights(engine.optimizer)
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        if full is None:
            full = unspread.get(id(parameter), parameter)
        yield name, full.detach().float().cpu().clone()
    for name, buffer in engine.module.named_buffers():
        yield name, buffer.detach().cpu().clone()


def _unspread_master_weights(optimizer: Any) -> dict[int, Tensor]:
    """By id of the rounded parameter: where bf16 without ZeRO keeps them, unseen by DeepSpeed."""
    rounded, masters = (getattr(optimizer, name, []) for name in ("fp16_groups", "fp32_groups"))
    return {
        id(parameter): master
        for group, master_group in zip(rounded, masters, strict=False)
        for parameter, master in zip(group, master_group, strict=True)
    }
