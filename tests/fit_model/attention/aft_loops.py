"""AFT written out: a pair of tokens at a time, in float64, from the paper's formulas."""

import torch

from fit_model.attention.aft import AftFull, AftFullConfig, AftSimple, AftSimpleConfig
from fit_model.attention.aft_conv import AftConv, AftConvConfig
from fit_model.attention.aft_local import AftLocal, AftLocalConfig
from fit_model.attention.place import Place

WIDTH = 6
GRIDS = {1: (1, 1), 5: (1, 5), 63: (7, 9)}
"""A grid of every length that is tried."""


def simple(num_tokens, *, causal="none", **settings):
    place = Place(num_tokens=num_tokens, causal=causal)
    return AftSimple(AftSimpleConfig(**settings), width=WIDTH, heads=1, place=place)


def full(num_tokens, *, causal="none", **settings):
    place = Place(num_tokens=num_tokens + 2, causal=causal)
    return AftFull(AftFullConfig(**settings), width=WIDTH, heads=1, place=place)


def local(num_tokens, *, causal="none", **settings):
    place = Place(num_tokens=num_tokens + 2, causal=causal)
    return AftLocal(AftLocalConfig(**settings), width=WIDTH, heads=1, place=place)


def conv(num_tokens, *, heads=1, **settings):
    place = Place(grid=GRIDS[num_tokens])
    return AftConv(AftConvConfig(**settings), width=WIDTH, heads=heads, place=place)


FORMS = {
    "simple": (simple, {}),
    "simple, causal": (simple, {"causal": "tokens"}),
    "full": (full, {"rank": None}),
    "full of rank 3, wider": (full, {"rank": 3, "hidden": 8}),
    "full, causal": (full, {"rank": 2, "causal": "tokens"}),
    "local 0": (local, {"window": 0, "rank": 2}),
    "local 1": (local, {"window": 1, "rank": None}),
    "local 4": (local, {"window": 4, "rank": 3, "qkv_bias": False}),
    "local 40": (local, {"window": 40, "rank": 3}),
    "local 4, causal": (local, {"window": 4, "rank": 3, "causal": "tokens"}),
    "local 40, causal": (local, {"window": 40, "rank": 3, "causal": "tokens"}),
    "conv, one head": (conv, {"kernel": 3}),
    "conv, three heads": (conv, {"kernel": 5, "heads": 3, "std": "sample"}),
    "conv on a line": (conv, {"kernel": 3, "axes": "line", "heads": 2}),
}
CAUSAL = [name for name in FORMS if "causal" in name]


def form(name, num_tokens):
    build, settings = FORMS[name]
    return build(num_tokens, **settings)


def pair_bias(mixer, query, key, *, num_tokens):
    """w[t, i] of every channel that is mixed, or of each head."""
    if isinstance(mixer, AftSimple):
        return torch.zeros((), dtype=torch.float64)
    if isinstance(mixer, AftConv):
        return filter_bias(mixer, query, key, num_tokens=num_tokens)
    if isinstance(mixer, AftLocal) and abs(query - key) >= mixer.window:
        return torch.zeros((), dtype=torch.float64)
    bias = mixer.position_bias
    if bias.rank is None:
        return bias.w[query, key].double()
    return (bias.u[query].double() * bias.v[key].double()).sum()


def filter_bias(mixer, query, key, *, num_tokens):
    raw, heads = mixer.position_bias.raw.double(), mixer.heads
    columns = GRIDS[num_tokens][1] if raw.ndim == 3 else num_tokens
    down, right = key // columns - query // columns, key % columns - query % columns
    half = raw.shape[-1] // 2
    if max(abs(down), abs(right)) > half:
        return torch.zeros(heads, dtype=torch.float64)
    rows = []
    for h in range(heads):
        numbers = raw[h].flatten()
        mean = sum(numbers) / len(numbers)
        divisor = len(numbers) - mixer.position_bias.divisor
        std = (sum((number - mean) ** 2 for number in numbers) / divisor) ** 0.5
        place = (half + down, half + right) if raw.ndim == 3 else (half + right,)
        gamma, beta = mixer.position_bias.gamma[h].double(), mixer.position_bias.beta[h].double()
        rows.append(gamma * (raw[h][place] - mean) / std + beta)
    return torch.stack(rows)


def loop(mixer, x, may_attend=None):
    """y of every token, all sequences at once."""
    num_tokens = x.shape[1]
    seen = torch.ones(len(x), num_tokens, dtype=torch.bool)
    if may_attend is not None:
        seen = may_attend[:, 0, 0].expand(len(x), num_tokens)

    def project(layer, tokens):
        bias = 0.0 if layer.bias is None else layer.bias.double()
        return tokens @ layer.weight.double().T + bias

    x = x.double()
    query, key, value = (project(each, x) for each in (mixer.query, mixer.key, mixer.value))
    of_head = value.shape[-1] // key.shape[-1]
    biases = {}
    rows = []
    for t in range(num_tokens):
        above = below = torch.zeros_like(value[:, 0])
        for i in range(t + 1 if mixer.sight else num_tokens):
            place = (t, i)
            if isinstance(mixer, AftConv):  # the same for all pairs this far apart
                columns = GRIDS[num_tokens][1] if mixer.grid else num_tokens
                place = (i // columns - t // columns, i % columns - t % columns)
            if place not in biases:
                biases[place] = pair_bias(mixer, t, i, num_tokens=num_tokens)
            weight = (key[:, i] + biases[place]).exp() * seen[:, i, None]
            weight = weight.repeat_interleave(of_head, 1)
            above, below = above + weight * value[:, i], below + weight
        mixed = torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)
        rows.append(project(mixer.out, query[:, t].sigmoid() * mixed))
    return torch.stack(rows, 1)
