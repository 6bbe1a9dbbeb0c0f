"""Token mixing of MLP-Mixer is two layers over tokens, forward and backward."""

import math

import pytest
import torch

from fit_model.attention.mlp_mixer import MlpMixer, MlpMixerConfig
from fit_model.attention.place import Place
from tests.fit_model.attention.mixing import (
    MASKS,
    all_finite,
    everywhere_random,
    mask,
    same_forward_and_backward,
    seen_tokens,
    sequences,
)


def mixer(num_tokens, *, width=6, hidden=4):
    config = MlpMixerConfig(hidden=hidden)
    model = MlpMixer(config, width=width, heads=3, place=Place(num_tokens=num_tokens))
    return everywhere_random(model)


def gelu(number):
    return number * (1 + torch.erf(number / math.sqrt(2))) / 2


def loop(model, x, may_attend):
    """A channel at a time, a hidden unit at a time."""
    batch, num_tokens, width = x.shape
    columns = []
    for b in range(batch):
        seen = seen_tokens(may_attend, b, num_tokens)
        for c in range(width):
            hidden = []
            for unit, bias in zip(model.expand.weight, model.expand.bias, strict=True):
                hidden.append(gelu(sum((x[b, n, c] * unit[n] for n in seen), start=bias)))
            for n in range(num_tokens):
                pairs = zip(hidden, model.contract.weight[n], strict=True)
                number = sum((h * w for h, w in pairs), start=model.contract.bias[n])
                columns.append(number if seen else torch.zeros((), dtype=torch.float64))
    return torch.stack(columns).reshape(batch, width, num_tokens).transpose(1, 2)


@pytest.mark.parametrize("seen", MASKS)
@pytest.mark.parametrize(("num_tokens", "longest"), [(1, 1), (1, 5), (5, 5), (5, 7)])
def test_token_mixing_is_a_loop_forward_and_backward(num_tokens, longest, seen):
    x, model = sequences(num_tokens, 3).requires_grad_(), mixer(longest, width=3)
    may_attend = mask(seen, num_tokens)
    found, wanted = model(x, may_attend), loop(model, x, may_attend)
    same_forward_and_backward([found], [wanted], [x, *model.parameters()])


def test_token_mixing_is_a_loop_on_63_tokens():
    x, model = sequences(63, 2, batch=1).requires_grad_(), mixer(63, width=2)
    same_forward_and_backward([model(x)], [loop(model, x, None)], [x, *model.parameters()])


def test_a_shorter_sequence_is_one_padded_with_unseen_tokens():
    model, x = mixer(9), sequences(9, 6)
    seen = torch.arange(9)[None, None, None] < 5
    torch.testing.assert_close(model(x[:, :5]), model(x, seen)[:, :5], atol=1e-12, rtol=0)
    other = torch.where(seen[:, 0, 0, :, None], x, 1e3)
    assert torch.equal(model(other, seen), model(x, seen))


def test_batch_mates_change_nothing_channels_are_alike_and_order_matters():
    model, x = mixer(9), sequences(9, 6)
    torch.testing.assert_close(model(x[1:2]), model(x)[1:2], atol=1e-12, rtol=0)
    torch.testing.assert_close(model(x.flip(2)), model(x).flip(2), atol=1e-12, rtol=0)
    assert (model(x.flip(1)) - model(x).flip(1)).abs().max() > 0.1


@pytest.mark.parametrize("seen", MASKS)
def test_large_inputs_stay_finite(seen):
    assert all_finite(mixer(63).float(), 3000 * sequences(63, 6).float(), mask(seen, 63))


def test_bfloat16_is_within_three_percent():
    model, x = mixer(63), sequences(63, 6)
    wanted = model(x)
    found = model.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.double() - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_a_sequence_of_nothing_gives_zeros_and_no_gradient():
    model, x = mixer(5), sequences(5, 6).requires_grad_()
    output = model(x, torch.zeros(1, 1, 1, 5, dtype=torch.bool))
    assert (output == 0).all()
    output.sum().backward()
    assert all((leaf.grad == 0).all() for leaf in (x, *model.parameters()))


def test_the_hidden_layer_is_half_a_token_wide_and_weights_are_counted():
    for hidden, wanted in [(None, 2 * 1024 * 64 + 64 + 1024), (1024, 2 * 1024 * 1024 + 2048)]:
        config = MlpMixerConfig(hidden=hidden)
        model = MlpMixer(config, width=128, heads=1, place=Place(grid=(32, 32)))
        assert sum(parameter.numel() for parameter in model.parameters()) == wanted


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="mlp_mixer has weights for every position"):
        MlpMixer(MlpMixerConfig(), width=6, heads=1, place=Place())
    with pytest.raises(ValueError, match="mlp_mixer mixes all tokens and has no causal form"):
        MlpMixer(MlpMixerConfig(), width=6, heads=1, place=Place(num_tokens=4, causal="tokens"))
    with pytest.raises(ValueError, match="for 4 tokens and is given 5"):
        mixer(4)(sequences(5, 6))
    with pytest.raises(ValueError, match="mlp_mixer cannot keep single pairs"):
        mixer(5)(sequences(5, 6), torch.ones(1, 1, 5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="hidden is 0; it must be at least 1"):
        MlpMixerConfig(hidden=0)
