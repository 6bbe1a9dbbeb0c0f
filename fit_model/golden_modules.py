"""Weights from a golden operator file into a module, and its outputs and gradients out of it.

    loss = sum over outputs of sum(output * cotangent)

The cotangent of the output y is inputs/cotangent, that of another output inputs/cotangent_NAME;
an output without one takes no part in the loss. All is computed in float64.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fit_model.golden import Arrays, Golden


def leaf(array: Tensor) -> Tensor:
    """A float64 copy that collects gradients."""
    return array.to(torch.float64, copy=True).requires_grad_()


def input_leaves(golden: Golden) -> dict[str, Tensor]:
    """Every input that is no cotangent, ready for gradients."""
    names = [name for name in golden.inputs if not name.startswith("cotangent")]
    return {name: leaf(golden.take(name)) for name in names}


def weight_leaves(golden: Golden) -> dict[str, Tensor]:
    """Every weight, ready for gradients; for functions that are no modules."""
    return {name: leaf(torch.from_numpy(array)) for name, array in golden.weights.items()}


def load(
    module: nn.Module, golden: Golden, *, names: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """Put the file's weights into the module; gives its tensors under the file's names.

    Args:
        module: takes the weights and turns float64; every parameter must find its own.
        golden: the file.
        names: the parameter or buffer of `module` for a weight of the file. A weight that is not
            named here has the name of its parameter; one that maps to "" is left out.
    """
    module.double().eval()
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    missing = {name for name, _ in module.named_parameters()}
    found: dict[str, Tensor] = {}
    for name, array in golden.weights.items():
        target = (names or {}).get(name, name)
        if not target:
            continue
        if target not in own:
            raise ValueError(f"weights: {name} has no place in {type(module).__name__}")
        if _without_ones(own[target].shape) != _without_ones(array.shape):
            raise ValueError(f"weights: {name} is {array.shape}, not {tuple(own[target].shape)}")
        with torch.no_grad():
            own[target].copy_(torch.from_numpy(array).reshape(own[target].shape))
        found[name] = own[target]
        missing.discard(target)
    if missing:
        raise ValueError(f"weights: {', '.join(sorted(missing))} is missing")
    return found


def answer(
    golden: Golden,
    outputs: Mapping[str, Tensor],
    *,
    inputs: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
) -> Arrays:
    """Outputs, `grads/NAME` of inputs and `weight_grads/NAME` of weights, in the file's shapes."""
    found = {name: value.detach().numpy() for name, value in outputs.items()}
    leaves = {f"grads/{name}": value for name, value in inputs.items()}
    leaves |= {f"weight_grads/{name}": value for name, value in weights.items()}
    leaves = {name: value for name, value in leaves.items() if value.requires_grad}
    loss = sum(
        ((value * golden.take(_cotangent(name))).sum() for name, value in outputs.items()
         if _cotangent(name) in golden.inputs),
        start=torch.zeros((), dtype=torch.float64),
    )  # fmt: skip
    if not leaves or not loss.requires_grad:
        return found
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    for (name, value), grad in zip(leaves.items(), grads, strict=True):
        shape = golden.gradients[name].shape if name in golden.gradients else value.shape
        found[name] = (torch.zeros_like(value) if grad is None else grad).reshape(shape).numpy()
    return found


def run(golden: Golden, module: nn.Module, *, names: Mapping[str, str] | None = None) -> Arrays:
    """The answer of a mixer: y = module(x) with all gradients."""
    weights = load(module, golden, names=names)
    inputs = input_leaves(golden)
    if "x" not in inputs:
        raise ValueError(f"inputs: x is missing; there are: {', '.join(golden.inputs)}")
    return answer(golden, {"y": module(inputs["x"])}, inputs=inputs, weights=weights)


def _cotangent(output: str) -> str:
    return "cotangent" if output == "y" else f"cotangent_{output}"


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]
