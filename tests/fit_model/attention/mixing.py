"""What tests of token mixers share: awkward sequences, and a comparison with a written-out loop."""

import copy

import torch

MASKS = ("everything", "padding", "a sequence of nothing")


def sequences(num_tokens, width, *, batch=3, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + num_tokens)
    x = torch.randn(batch, num_tokens, width, generator=generator, dtype=torch.float64)
    return x * torch.rand(batch, num_tokens, 1, generator=generator, dtype=torch.float64) * 2


def mask(name, num_tokens, *, batch=3):
    """Which tokens are seen, (b, n), as a mixer takes it; None stands for all."""
    if name == "everything":
        return None
    seen = torch.ones(batch, num_tokens, dtype=torch.bool)
    seen[1, num_tokens // 2 :] = num_tokens == 1
    seen[2, ::2] = num_tokens == 1
    if name == "a sequence of nothing":
        seen[0] = False
    return seen[:, None, None]


def everywhere_random(module, *, seed=0):
    """The module in float64 with every parameter away from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    return module


def seen_tokens(may_attend, b, num_tokens):
    if may_attend is None:
        return list(range(num_tokens))
    return [n for n in range(num_tokens) if may_attend.expand(-1, 1, 1, num_tokens)[b, 0, 0, n]]


def gradients(outputs, leaves):
    """Of a loss that weighs every number of the outputs differently."""
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum() for y in outputs
    )
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [
        torch.zeros_like(leaf) if grad is None else grad
        for leaf, grad in zip(leaves, found, strict=True)
    ]


def same_forward_and_backward(found, wanted, leaves, *, within=1e-11):
    """Both tuples of outputs agree, and so do their gradients by every leaf."""
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=within, rtol=within)
    pairs = zip(gradients(found, leaves), gradients(wanted, leaves), strict=True)
    for ours, theirs in pairs:
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, atol=10 * within * scale, rtol=0)


def all_finite(mixer, x, *arguments):
    """Outputs and gradients of every leaf are finite."""
    x = x.detach().requires_grad_()
    outputs = mixer(x, *arguments)
    outputs.sum().backward()
    leaves = [x, *mixer.parameters()]
    return all(bool(leaf.isfinite().all()) for leaf in [outputs, *(leaf.grad for leaf in leaves)])


def drift_in_bfloat16(model, num_tokens):
    """How far off a channel is as a whole, over all tokens, against float64.

    Rounding of single tokens averages out of it; rounding of what tokens share does not.
    """
    width = model.out.weight.shape[0]
    with torch.no_grad():
        model.bfloat16().out.weight.copy_(torch.eye(width))
        model.out.bias.zero_()
    x = sequences(num_tokens, width).bfloat16()
    found, wanted = model(x).double(), copy.deepcopy(model).double()(x.double())
    shares = (found * wanted).sum(1) / wanted.square().sum(1)
    return (shares - 1).abs().max()
