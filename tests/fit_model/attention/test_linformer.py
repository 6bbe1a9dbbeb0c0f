"""Linformer is its formula, forward and backward, and softmax where it mixes nothing."""

import pytest
import torch

from fit_model import parity
from fit_model.attention.linformer import Linformer, LinformerConfig
from fit_model.attention.place import Place
from fit_model.attention.rotary import Rotary1d, Rotary1dConfig
from fit_model.attention.softmax_reference import softmax_reference
from tests.fit_model.attention.mixing import (
    MASKS,
    everywhere_random,
    mask,
    same_forward_and_backward,
    seen_tokens,
    sequences,
)

SETTINGS = {
    "own values": {},
    "biases": {"qkv_bias": True},
    "shared values": {"sharing": "key_value"},
    "one head of keys": {"key_heads": "one"},
    "one head of shared values": {"key_heads": "one", "sharing": "key_value"},
}


def mixer(heads, *, tokens, width=6, rank=4, **settings):
    config = LinformerConfig(rank=rank, **settings)
    model = Linformer(config, width=width, heads=heads, place=Place(num_tokens=tokens))
    return everywhere_random(model, seed=heads)


def linear(module, x):
    return x @ module.weight.T + (0.0 if module.bias is None else module.bias)


def mixtures_of(rows, by, seen, part):
    """Every mixture of the channels `part` of the tokens that are seen."""
    nothing = torch.zeros(len(range(*part.indices(rows.shape[-1]))), dtype=torch.float64)
    return [
        sum((by[s, r] * rows[s, part] for s in seen), start=nothing) for r in range(by.shape[1])
    ]


def loop(model, x, may_attend):
    d = x.shape[-1] // model.heads
    query, key = linear(model.query, x), linear(model.key, x)
    value = key if model.value is None else linear(model.value, x)
    by_keys = model.shorten_keys
    by_values = by_keys if model.shorten_values is None else model.shorten_values
    output = []
    for b in range(x.shape[0]):
        seen, heads = seen_tokens(may_attend, b, x.shape[1]), []
        for h in range(model.heads):
            of_keys = h if model.key_heads > 1 else 0
            mine, theirs = slice(h * d, (h + 1) * d), slice(of_keys * d, (of_keys + 1) * d)
            keys = mixtures_of(key[b], by_keys, seen, theirs)
            values = mixtures_of(value[b], by_values, seen, theirs)
            rows = []
            for asked in query[b, :, mine]:
                scores = [torch.exp((asked * short).sum() / d**0.5) for short in keys]
                mixed = sum(w * short for w, short in zip(scores, values, strict=True))
                rows.append(mixed / sum(scores))
            heads.append(torch.stack(rows))
        output.append(linear(model.out, torch.cat(heads, -1)))
    return torch.stack(output)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("seen", MASKS)
@pytest.mark.parametrize(("num_tokens", "heads"), [(1, 1), (5, 1), (5, 3)])
def test_linformer_is_a_loop_forward_and_backward(num_tokens, heads, seen, settings):
    x, may_attend = sequences(num_tokens, 6).requires_grad_(), mask(seen, num_tokens)
    model = mixer(heads, tokens=7, **settings)
    same_forward_and_backward(
        [model(x, may_attend)], [loop(model, x, may_attend)], [x, *model.parameters()]
    )


def test_linformer_is_a_loop_on_63_tokens():
    x, model = sequences(63, 4, batch=1).requires_grad_(), mixer(2, tokens=63, width=4)
    same_forward_and_backward([model(x)], [loop(model, x, None)], [x, *model.parameters()])


def by_hand(model, matrix):
    """The model with both mixtures set."""
    with torch.no_grad():
        model.shorten_keys.copy_(matrix)
        model.shorten_values.copy_(matrix)
    return model


def full_softmax(model, x):
    query, key, value = (
        linear(module, x).unflatten(-1, (model.heads, -1)).transpose(1, 2)
        for module in (model.query, model.key, model.value)
    )
    return linear(model.out, softmax_reference(query, key, value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("order", [range(7), [3, 1, 6, 0, 5, 2, 4]], ids=["kept", "reordered"])
def test_one_mixture_a_token_is_softmax(order):
    matrix = torch.eye(7, dtype=torch.float64)[list(order)]
    model, x = by_hand(mixer(3, tokens=7, rank=7), matrix), sequences(7, 6)
    torch.testing.assert_close(model(x), full_softmax(model, x), atol=1e-12, rtol=0)


def test_one_mixture_of_all_tokens_is_their_mean():
    model, x = by_hand(mixer(3, tokens=7, rank=1), torch.full((7, 1), 1 / 7)), sequences(7, 6)
    mean = linear(model.value, x).mean(1, keepdim=True).expand(-1, 7, -1)
    # a float32 seventh
    torch.testing.assert_close(model(x), linear(model.out, mean), atol=1e-6, rtol=0)


def test_few_mixtures_are_not_softmax_and_do_not_follow_a_permutation():
    model, x = mixer(3, tokens=7, rank=4), sequences(7, 6)
    assert (model(x) - full_softmax(model, x)).abs().max() > 1e-2
    assert (model(x.flip(1)) - model(x).flip(1)).abs().max() > 1e-2


def test_padding_at_the_end_changes_nothing():
    model, x = mixer(3, tokens=9), sequences(9, 6)
    may_attend = (torch.arange(9) < 6)[None, None, None]
    torch.testing.assert_close(model(x, may_attend)[:, :6], model(x[:, :6]), atol=1e-12, rtol=0)


def test_a_rotary_code_turns_keys_and_no_values():
    place = Place(num_tokens=5)
    rotary = Rotary1d(Rotary1dConfig(), width=6, heads=3, place=place)
    config = LinformerConfig(rank=4, sharing="key_value")
    model = Linformer(config, width=6, heads=3, place=place, rotary=rotary)
    model, x = everywhere_random(model), sequences(5, 6)
    query, key = (
        linear(module, x).unflatten(-1, (3, -1)).transpose(1, 2)
        for module in (model.query, model.key)
    )
    by = model.shorten_keys[:5].T
    turned = rotary(query, key)
    mixed = softmax_reference(turned[0], by @ turned[1], by @ key).transpose(1, 2).flatten(2)
    torch.testing.assert_close(model(x), linear(model.out, mixed), atol=1e-12, rtol=0)


def test_mixtures_start_uniform_within_a_root():
    model = Linformer(LinformerConfig(), width=4, heads=1, place=Place(num_tokens=500))
    for weights in (model.shorten_keys, model.shorten_values):
        assert 0.062 < weights.abs().max() <= 1 / 16
        assert abs(weights.std() - 1 / 16 / 3**0.5) < 1e-3


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [({"key_heads": "one", "sharing": "key_value"}, 102_592), ({"sharing": "key_value"}, 114_880)],
)
def test_a_layer_of_vix_has_its_weights(settings, wanted):
    place = Place(grid=(32, 32), prefix=1)
    model = Linformer(LinformerConfig(rank=64, **settings), width=128, heads=4, place=place)
    assert sum(parameter.numel() for parameter in model.parameters()) == wanted


def test_golden_linformer_is_met(shared):
    assert parity.main([str(shared / "golden/ops/linformer.npz"), "--tolerance", "1e-13"]) == 0


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (Place(), "linformer has weights for every position"),
        (Place(num_tokens=5, causal="tokens"), "linformer mixes all tokens and has no causal"),
    ],
)
def test_places_without_length_or_with_order_are_refused(place, said):
    with pytest.raises(ValueError, match=said):
        Linformer(LinformerConfig(), width=4, heads=1, place=place)


def test_more_tokens_than_built_for_are_refused():
    with pytest.raises(ValueError, match="linformer has weights for 5 tokens and is given 6"):
        mixer(1, tokens=5)(sequences(6, 6))


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"rank": 0}, "rank is 0"), ({"rank": -4}, "rank is -4")],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        LinformerConfig(**settings)
