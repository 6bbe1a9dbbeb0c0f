"""Nystromformer is its formula, forward and backward, and softmax where landmarks are tokens."""

import pytest
import torch

from fit_model import parity
from fit_model.attention.landmarks import Landmarks
from fit_model.attention.nystromformer import Nystromformer, NystromformerConfig
from fit_model.attention.place import Place
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
    "no convolution": {"conv_kernel": None},
    "convolution": {"conv_kernel": 3},
    "no biases": {"conv_kernel": None, "qkv_bias": False},
}


def mixer(heads, *, width=6, landmarks=3, scale=1.0, **settings):
    config = NystromformerConfig(**({"landmarks": landmarks, "conv_kernel": None} | settings))
    model = Nystromformer(config, width=width, heads=heads, place=Place())
    model = everywhere_random(model, seed=heads)
    with torch.no_grad():
        for linear in (model.query, model.key):
            linear.weight.mul_(scale)
    return model


def linear(module, x):
    return x @ module.weight.T + (0.0 if module.bias is None else module.bias)


def shares(asking, offering):
    """softmax of every row of scores, a pair at a time."""
    rows = []
    for asked in asking:
        weights = [torch.exp((asked * offered).sum()) for offered in offering]
        rows.append(torch.stack(weights) / sum(weights))
    return torch.stack(rows)


def inverse_by_steps(matrix, *, iterations):
    guess = matrix.T / max(matrix.sum(0))
    eye = torch.eye(len(matrix), dtype=torch.float64)
    for _ in range(iterations):
        product = matrix @ guess
        guess = guess @ (13 * eye - product @ (15 * eye - product @ (7 * eye - product))) / 4
    return guess


def convolved(rows, kernel, *, seen):
    half = len(kernel) // 2
    found = []
    for t in range(len(rows)):
        near = [kernel[s - t + half] * rows[s] for s in seen if abs(s - t) <= half]
        found.append(sum(near, start=torch.zeros_like(rows[t])))
    return torch.stack(found)


def loop(model, x, may_attend):
    d, tokens = x.shape[-1] // model.heads, x.shape[1]
    query, key, value = (linear(m, x) for m in (model.query, model.key, model.value))
    query = query / d**0.5
    output = []
    for b in range(x.shape[0]):
        seen, heads = seen_tokens(may_attend, b, tokens), []
        few = min(model.config.landmarks, len(seen))
        landmark_of = {s: i * few // len(seen) for i, s in enumerate(seen)}
        segments = [[s for s in seen if landmark_of[s] == m] for m in range(few)]
        for h in range(model.heads):
            part = slice(h * d, (h + 1) * d)
            mixed = torch.zeros(tokens, d, dtype=torch.float64)
            if seen:
                q_few, k_few = (
                    [sum(of[b, s, part] for s in segment) / len(segment) for segment in segments]
                    for of in (query, key)
                )
                middle = shares(q_few, k_few)
                inverted = inverse_by_steps(middle, iterations=model.config.iterations)
                read = shares(q_few, key[b, seen, part]) @ value[b, seen, part]
                mixed = shares(query[b, :, part], k_few) @ inverted @ read
            if model.conv is not None:
                kernel = model.conv.weight[h, 0, :, 0]
                mixed = mixed + convolved(value[b, :, part], kernel, seen=seen)
            heads.append(mixed)
        output.append(linear(model.out, torch.cat(heads, -1)))
    return torch.stack(output)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("seen", MASKS)
@pytest.mark.parametrize(("num_tokens", "heads"), [(1, 1), (5, 1), (5, 3), (12, 2)])
def test_nystromformer_is_a_loop_forward_and_backward(num_tokens, heads, seen, settings):
    x, may_attend = sequences(num_tokens, 6).requires_grad_(), mask(seen, num_tokens)
    model = mixer(heads, **settings)
    same_forward_and_backward(
        [model(x, may_attend)], [loop(model, x, may_attend)], [x, *model.parameters()]
    )


def test_nystromformer_is_a_loop_on_63_tokens():
    x, model = sequences(63, 4, batch=1).requires_grad_(), mixer(2, width=4, landmarks=4)
    same_forward_and_backward([model(x)], [loop(model, x, None)], [x, *model.parameters()])


def full_softmax(model, x):
    query, key, value = (
        linear(module, x).unflatten(-1, (model.heads, -1)).transpose(1, 2)
        for module in (model.query, model.key, model.value)
    )
    return linear(model.out, softmax_reference(query, key, value).transpose(1, 2).flatten(2))


def test_a_landmark_a_token_is_softmax_once_the_inverse_has_converged():
    x, early = sequences(7, 12), mixer(1, width=12, landmarks=64, scale=0.3)
    late = mixer(1, width=12, landmarks=64, scale=0.3, iterations=60)
    torch.testing.assert_close(late(x), full_softmax(late, x), atol=1e-7, rtol=0)
    assert (early(x) - full_softmax(early, x)).abs().max() > 1e-4


def test_weights_of_a_query_sum_to_1_once_the_inverse_has_converged():
    q, k = sequences(12, 8)[:, None], sequences(12, 8, seed=1)[:, None]
    found = {}
    for iterations in (1, 60):
        model = mixer(1, width=8, landmarks=4, iterations=iterations)
        found[iterations] = model.through_landmarks(q, k, torch.ones_like(q), None)
    torch.testing.assert_close(found[60], torch.ones_like(q), atol=1e-8, rtol=0)
    assert (found[1] - 1).abs().max() > 1e-2


def test_gaps_change_nothing_but_what_the_convolution_sees():
    x, seen = sequences(11, 6), torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1], dtype=torch.bool)
    plain, convolved = mixer(3, landmarks=4), mixer(3, landmarks=4, conv_kernel=3)
    for model, same in ((plain, True), (convolved, False)):
        difference = model(x, seen[None, None, None])[:, seen] - model(x[:, seen])
        assert (difference.abs().max() < 1e-10) == same
    padded = torch.cat([x[:, seen], x[:, ~seen]], 1)
    end = (torch.arange(11) < 7)[None, None, None]
    torch.testing.assert_close(
        convolved(padded, end)[:, :7], convolved(x[:, seen]), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize(("tokens", "at_most"), [(12, 4), (13, 4), (63, 8), (3, 8), (1, 1)])
def test_segments_are_consecutive_and_as_equal_as_can_be(tokens, at_most):
    where = {"num_tokens": tokens, "at_most": at_most, "device": torch.device("cpu")}
    alone = Landmarks.of(None, **where)
    seen = Landmarks.of(torch.ones(1, tokens, dtype=torch.bool), **where)
    assert torch.equal(alone.members, seen.members)
    sizes = alone.members[0].sum(-1)
    assert len(sizes) == min(tokens, at_most)
    assert sizes.max() - sizes.min() <= 1
    order = alone.members[0].int().argmax(0)
    assert (alone.members.sum(1) == 1).all()
    assert (order.diff() >= 0).all()


def test_batch_mates_matter_only_to_the_normaliser_of_the_batch():
    x = sequences(12, 6) * torch.tensor([1.0, 3.0, 0.2])[:, None, None]
    for normaliser, same in (("matrix", True), ("batch", False)):
        model = mixer(3, normaliser=normaliser, iterations=4)
        alone = torch.cat([model(each[None]) for each in x])
        assert ((alone - model(x)).abs().max() < 1e-12) == same


def test_segments_do_not_follow_a_permutation():
    x, model = sequences(9, 6), mixer(3)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert (model(x[:, order]) - model(x)[:, order]).abs().max() > 1e-3


def test_a_layer_of_vix_has_its_weights():
    config = NystromformerConfig(qkv_bias=False)
    model = Nystromformer(config, width=128, heads=4, place=Place())
    softmax = 3 * 128 * 128 + 128 * 128 + 128
    assert sum(parameter.numel() for parameter in model.parameters()) == softmax + 4 * 33


@pytest.mark.parametrize("name", ["", "_conv", "_per_matrix", "_conv_per_matrix", "_converged"])
def test_golden_nystromformers_are_met(shared, name):
    assert parity.main([str(shared / f"golden/ops/nystrom{name}.npz"), "--tolerance", "1e-12"]) == 0


def test_a_causal_place_is_refused():
    with pytest.raises(ValueError, match="nystromformer mixes all tokens and has no causal"):
        Nystromformer(NystromformerConfig(), width=4, heads=1, place=Place(causal="tokens"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"landmarks": 0}, "0 landmarks"),
        ({"iterations": 0}, "0 iterations"),
        ({"conv_kernel": 4}, "conv_kernel is 4"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        NystromformerConfig(**settings)


def test_fewer_seen_tokens_than_landmarks_are_a_landmark_each():
    x, model = sequences(9, 6), mixer(3, landmarks=5)
    seen = torch.tensor([0, 1, 0, 0, 0, 0, 0, 1, 0], dtype=torch.bool)
    found = model(x, seen[None, None, None])[:, seen]
    torch.testing.assert_close(found, model(x[:, seen]), atol=1e-10, rtol=0)
