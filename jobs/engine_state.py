"""The state of a training as pieces of parameters: what a worker holds, under any ZeRO stage.

A piece is a run of one parameter's elements, in fp32, and what the optimizer keeps of them. A name
and a start say where it belongs, so what some workers have cut in one way, others put together in
another.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fit_model.averaging import AVERAGE
from fit_model.lamb import Lamb
from jobs.engine import OptimizerConfig, unspread_master_weights

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
STATES = (*MOMENTS, AVERAGE)
STEP = "step"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Elements [start, start + numel) of a parameter, row by row, as views of the engine's own."""

    name: str
    start: int
    weight: Tensor
    """[numel], fp32; the master weights under bf16."""
    whole: Tensor
    """What the optimizer takes for a parameter, of which this is a part."""
    offset: int
    """Of the first element in `whole`."""

    @property
    def numel(self) -> int:
        """Elements."""
        return self.weight.numel()

    def part_of(self, state: Tensor) -> Tensor:
        """The same elements of something that the optimizer keeps of `whole`."""
        return state.view(-1).narrow(0, self.offset, self.numel)


def held(engine: Any) -> Iterator[Piece]:
    """Everything that this worker holds; without ZeRO that is all of it."""
    return _cut(engine)(engine)


def own(engine: Any) -> Iterator[Piece]:
    """What this worker answers for: over the workers, every element once."""
    if engine.zero_optimization_stage() > 0:
        yield from held(engine)
        return
    rank, world_size = engine.global_rank, engine.world_size
    for piece in held(engine):
        first, last = (share * piece.numel // world_size for share in (rank, rank + 1))
        if first < last:
            yield Piece(
                name=piece.name,
                start=first,
                weight=piece.weight[first:last],
                whole=piece.whole,
                offset=first,
            )


def _cut(engine: Any) -> Callable[[Any], Iterator[Piece]]:
    return {0: _unspread, 1: _spread, 2: _spread, 3: _spread_evenly}[
        engine.zero_optimization_stage()
    ]


def _unspread(engine: Any) -> Iterator[Piece]:
    """No ZeRO: whole parameters, or under bf16 their master weights."""
    masters = unspread_master_weights(engine.optimizer)
    for name, parameter in engine.module.named_parameters():
        whole = masters.get(id(parameter), parameter)
        yield Piece(name=name, start=0, weight=whole.detach().view(-1), whole=whole, offset=0)


def _spread(engine: Any) -> Iterator[Piece]:
    """ZeRO 1 and 2: the parameters of a group end to end, cut without regard to their ends."""
    zero = engine.optimizer
    group_of = {
        id(parameter): flat
        for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True)
        for parameter in group
    }
    for name, parameter in engine.module.named_parameters():
        here = parameter._hp_mapping
        if here is not None:
            yield Piece(
                name=name,
                start=here.lp_fragment_address.start,
                weight=here.hp_fragment.detach(),
                whole=group_of[id(parameter)],
                offset=here.hp_fragment_address.start,
            )


def _spread_evenly(engine: Any) -> Iterator[Piece]:
    """ZeRO 3: each parameter in shares of one size, the last ones filled up."""
    zero, rank = engine.optimizer, engine.global_rank
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    for group, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        offset = 0
        for parameter in group:
            share = parameter.partition_numel()
            start = rank * share
            numel = min(share, parameter.ds_numel - start)
            if numel > 0:
                yield Piece(
                    name=names[id(parameter)],
                    start=start,
                    weight=flat.detach().narrow(0, offset, numel),
                    whole=flat,
                    offset=offset,
                )
            offset += share


def states_of(engine: Any, piece: Piece) -> dict[str, Tensor]:
    """What the optimizer keeps of a piece, by name; nothing before its first step."""
    kept = engine.basic_optimizer.state.get(piece.whole, {})
    return {name: piece.part_of(kept[name]) for name in STATES if name in kept}


def states_kept(config: OptimizerConfig) -> tuple[str, ...]:
    """What an optimizer made by this configuration keeps of every element."""
    return MOMENTS if config.ema_decay is None else STATES


def state_names(engine: Any) -> tuple[str, ...]:
    """What the optimizer keeps of every piece; nothing before its first step."""
    found = engine.basic_optimizer.state.values()
    return tuple(name for name in STATES if any(name in kept for kept in found))


def num_elements(engine: Any) -> dict[str, int]:
    """Of every parameter, whole."""
    return {
        name: getattr(parameter, "ds_numel", None) or parameter.numel()
        for name, parameter in engine.module.named_parameters()
    }


def optimizer_steps(engine: Any) -> int:
    """How many steps the optimizer has made; all parameters have made the same."""
    found = {int(kept[STEP]) for kept in engine.basic_optimizer.state.values() if STEP in kept}
    (steps,) = found or {0}
    return steps


def prepare_states(engine: Any, *, steps: int, names: tuple[str, ...]) -> None:
    """Make the optimizer's state as it is after so many steps, its tensors still to be filled.

    What fills up a worker's shares is 0 there, as it is after real steps.
    """
    optimizer = engine.basic_optimizer
    if steps == 0:
        optimizer.state.clear()
        # DeepSpeed looks for the states anew after the next step
        engine.optimizer._hp_optimizer_states_linked = False
        return
    for whole in _wholes(engine):
        before = optimizer.state.get(whole, {})
        optimizer.state[whole] = {
            STEP: steps if isinstance(optimizer, Lamb) else torch.tensor(float(steps)),
            **{name: before.get(name, torch.zeros_like(whole.detach())) for name in names},
        }


def _wholes(engine: Any) -> list[Tensor]:
    """All that the optimizer takes for parameters, on this worker."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    if stage > 0:
        return list(optimizer.single_partition_of_fp32_groups)
    return [whole for group in optimizer.param_groups for whole in group["params"]]


def refresh(engine: Any) -> None:
    """Bring the weights that the model computes with to their fp32 masters; COLLECTIVE."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 3:
        optimizer.checkpoint_event_prologue()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()
    elif stage > 0:
        optimizer.update_lp_params()
    else:
        masters = unspread_master_weights(optimizer)
        for parameter in engine.module.parameters():
            parameter.data.copy_(masters.get(id(parameter), parameter).data)


def buffers(engine: Any) -> dict[str, Tensor]:
    """What the model keeps beside its parameters, and saves."""
    saved = engine.module.state_dict(keep_vars=True)
    return {name: each for name, each in engine.module.named_buffers() if name in saved}


def num_buffered(engine: Any) -> dict[str, int]:
    """Elements of these, by name."""
    return {name: each.numel() for name, each in buffers(engine).items()}
