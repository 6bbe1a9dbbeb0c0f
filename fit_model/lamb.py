"""LAMB: Adam whose step is stretched, layer by layer, to the size of the weights.

    m <- b1 m + (1 - b1) g              v <- b2 v + (1 - b2) g^2
    update = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay w
    ratio  = |w| / |update|, and 1 where either is 0
    w <- w - lr ratio update

A layer is one parameter. Where a group has adapted = False, its ratio is 1.
Source: You et al. 2020, arXiv:1904.00962, algorithm 2, with the identity as phi and with bias
correction, as TensorFlow Addons has it, which the official FIT is trained with.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Total = Callable[[Float[Tensor, "2"]], Float[Tensor, "2"]]


def alone(squares: Float[Tensor, "2"]) -> Float[Tensor, "2"]:
    """The squared norms of a parameter that is held whole."""
    return squares


class Lamb(torch.optim.Optimizer):
    """The optimizer of the module's docstring, for whole parameters and for shares of them.

    Args:
        groups: parameters, or groups of them with "weight_decay" and "adapted" of their own.
        total: sums the squared norms over those who each hold a share of one parameter. It is
            called once for every adapted parameter, in the order of parameters.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        total: Total = alone,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapted": True,
        }
        super().__init__(groups, defaults)
        self.total = total

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient; gives what the closure gave."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)
        return loss

    def _step(self, weight: Tensor, group: dict[str, Any]) -> None:
        update = self._adam(weight, group)
        if group["weight_decay"]:
            update.add_(weight, alpha=group["weight_decay"])
        if group["adapted"]:
            update.mul_(self._ratio(weight, update))
        weight.sub_(update, alpha=group["lr"])

    def _adam(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """The bias-corrected step of Adam, and its moments moved on."""
        state = self.state[weight]
        if "step" not in state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        state["step"] += 1
        first, second = group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(weight.grad, 1.0 - first)
        square.mul_(second).addcmul_(weight.grad, weight.grad, value=1.0 - second)
        spread = (square / (1.0 - second ** state["step"])).sqrt_().add_(group["eps"])
        return (mean / (1.0 - first ** state["step"])).div_(spread)

    def _ratio(self, weight: Tensor, update: Tensor) -> Tensor:
        """How much larger the weights are than their update."""
        squares = torch.stack([weight.square().sum(), update.square().sum()])
        weights, updates = self.total(squares).sqrt().unbind()
        ratio = weights / updates
        return torch.where((weights > 0) & (updates > 0), ratio, torch.ones_like(ratio))
