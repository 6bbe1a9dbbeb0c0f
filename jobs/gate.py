"""The door between an engine and its optimizer: a step that is not taken leaves all as it was."""

import math
from collections.abc import Callable
from typing import Any

import torch

LINKED = "_hp_optimizer_states_linked"
"""What DeepSpeed's optimizers call the flag that they have found the state of every parameter."""


class Gate:
    """Makes an engine's steps, if they are admitted.

    A refused step clears the gradients and counts the micro-steps as any other, and changes
    neither weights, moments, step counts nor averages. Whoever judges is asked once a step, at the
    same place on all workers and with the same norm on all of them, and must say the same on all.

    Args:
        engine: DeepSpeed's; its optimizer's `step` leads through here from now on.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._optimizer = engine.basic_optimizer
        # ZeRO calls it once a group; torch runs the hooks of a step inside
        self._take = self._optimizer.step
        self._optimizer.step = self._asked
        self._admit: Callable[[float], bool]
        self._admitted: bool | None = True

    def step(self, admit: Callable[[float], bool]) -> bool:
        """The engine's step after the last micro-step; whether it was taken.

        Args:
            admit: says whether to take it, given the norm of the whole gradient before it is
                clipped; infinite where it is not finite. What cannot be admitted is refused.
        """
        self._admit, self._admitted = admit, None
        linked = getattr(self.engine.optimizer, LINKED, True)
        if self.engine.optimizer is self._optimizer:
            # without ZeRO in fp32 the engine clips, and keeps no norm
            self._judge(gradient_norm(self._optimizer))
        self.engine.step()
        if self._admitted is None:
            # DeepSpeed has seen a norm that is not finite, and did not ask its optimizer
            admit(math.inf)
            self._admitted = False
        taken, self._admitted = self._admitted, True
        if not (taken or linked):
            self._unlink()
        return taken

    def _asked(self, *args: Any, **settings: Any) -> Any:
        if self._admitted is None:
            self._judge(float(self.engine.optimizer._global_grad_norm))
        return self._take(*args, **settings) if self._admitted else None

    def _judge(self, norm: float) -> None:
        finite = math.isfinite(norm) and norm >= 0.0
        self._admitted = self._admit(norm if finite else math.inf) and finite

    def _unlink(self) -> None:
        """DeepSpeed looks for the state after its first step: it must look again, there is none."""
        setattr(self.engine.optimizer, LINKED, False)
        state = self._optimizer.state
        for parameter in [each for each, found in state.items() if not found]:
            del state[parameter]


def gradient_norm(optimizer: torch.optim.Optimizer) -> float:
    """Of all parameters together."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    gradients = [each.grad for each in parameters if each.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))
