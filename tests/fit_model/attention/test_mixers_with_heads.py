"""Performer, Linformer and Nystromformer keep what every token mixer promises."""

import pytest
import torch

from fit_model.attention.linformer import Linformer, LinformerConfig
from fit_model.attention.nystromformer import Nystromformer, NystromformerConfig
from fit_model.attention.performer import Performer, PerformerConfig
from fit_model.attention.place import Place
from fit_model.attention.rotary import Rotary1dConfig, RotaryMixedConfig, build_rotary
from tests.fit_model.attention.mixing import all_finite, sequences

SPACE = {"place": Place(grid=(7, 9)), "width": 12, "heads": 3}
CAUSAL = {"place": Place(causal="tokens"), "width": 12, "heads": 3}
MIXERS = {
    "performer": lambda: Performer(PerformerConfig(), **SPACE),
    "performer without eps": lambda: Performer(PerformerConfig(eps=0.0), **SPACE),
    "performer with their maximum": lambda: Performer(
        PerformerConfig(stabiliser="projection"), **SPACE
    ),
    "causal performer": lambda: Performer(PerformerConfig(), **CAUSAL),
    "causal performer without eps": lambda: Performer(PerformerConfig(eps=0.0), **CAUSAL),
    "performer with a code": lambda: Performer(
        PerformerConfig(),
        rotary=build_rotary(Rotary1dConfig(), **SPACE),
        **SPACE,
    ),
    "linformer": lambda: Linformer(LinformerConfig(rank=16), **SPACE),
    "linformer with one head of keys": lambda: Linformer(
        LinformerConfig(rank=16, key_heads="one", sharing="key_value"), **SPACE
    ),
    "nystromformer": lambda: Nystromformer(NystromformerConfig(landmarks=8), **SPACE),
    "nystromformer with a code": lambda: Nystromformer(
        NystromformerConfig(landmarks=8, conv_kernel=None),
        rotary=build_rotary(RotaryMixedConfig(), **SPACE),
        **SPACE,
    ),
}


def built(name):
    torch.manual_seed(5)
    return MIXERS[name]()


def some_seen(tokens=63):
    seen = torch.ones(3, tokens, dtype=torch.bool)
    seen[1, 10:20] = seen[1, 50:] = False
    seen[2] = False
    return seen[:, None, None]


@pytest.mark.parametrize("name", MIXERS)
def test_batch_mates_change_nothing(name):
    model, x = built(name).double(), sequences(63, 12)
    alone = torch.cat([model(each[None]) for each in x])
    torch.testing.assert_close(alone, model(x), atol=1e-12, rtol=0)
    strange = torch.cat([x[:1], 100 * x[1:]])
    torch.testing.assert_close(model(strange)[0], model(x)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", MIXERS)
def test_tokens_that_nobody_sees_change_nothing(name):
    model, x, may_attend = built(name).double(), sequences(63, 12), some_seen()
    strange = torch.where(may_attend[:, 0, 0, :, None], x, 100 * x.flip(0) + 5)
    found, wanted = model(strange, may_attend), model(x, may_attend)
    seen = may_attend[:, 0, 0]
    torch.testing.assert_close(found[seen], wanted[seen], atol=1e-12, rtol=0)
    assert found.isfinite().all()
    assert (model(x) - wanted)[1, 20:50].abs().max() > 1e-6


@pytest.mark.parametrize("name", MIXERS)
def test_a_sequence_of_nothing_gives_zeros_and_no_gradient(name):
    model, x = built(name).double(), sequences(63, 12).requires_grad_()
    with torch.no_grad():
        model.out.bias.zero_()
    output = model(x, some_seen())
    assert (output[2] == 0).all()
    output.square().sum().backward()
    assert (x.grad[2] == 0).all()
    assert x.grad.isfinite().all()
    assert x.grad[0].abs().sum() > 0


@pytest.mark.parametrize("seen", ["everything", "some"])
@pytest.mark.parametrize("name", MIXERS)
def test_inputs_3000_times_as_large_stay_finite(name, seen):
    model, x = built(name), sequences(63, 12).float()
    assert all_finite(model, 3000 * x, None if seen == "everything" else some_seen())


@pytest.mark.parametrize("name", MIXERS)
def test_bfloat16_is_float32_within_4_percent(name):
    model, x = built(name).to(torch.bfloat16), sequences(63, 12).to(torch.bfloat16)
    found = model(x, some_seen())
    wanted = model.float()(x.float(), some_seen())
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).abs().max() < 0.04 * wanted.abs().max()


@pytest.mark.parametrize("name", MIXERS)
def test_a_mask_of_pairs_is_refused(name):
    pairs = torch.ones(1, 1, 63, 63, dtype=torch.bool)
    with pytest.raises(ValueError, match="cannot keep single pairs of tokens apart"):
        built(name)(sequences(63, 12).float(), pairs)


@pytest.mark.parametrize(
    ("mixer", "config"),
    [
        (Performer, PerformerConfig),
        (Linformer, LinformerConfig),
        (Nystromformer, NystromformerConfig),
    ],
)
def test_heads_that_do_not_fill_the_width_are_refused(mixer, config):
    with pytest.raises(ValueError, match="width 13 is no multiple of heads 3"):
        mixer(config(), width=13, heads=3, place=Place(num_tokens=4))
