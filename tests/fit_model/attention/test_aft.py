"""AFT in all its forms is its formula, forward and backward, for any sequence and any numbers."""

import pytest
import torch

from fit_model import parity
from fit_model.attention import biased_means
from tests.fit_model.attention.aft_loops import CAUSAL, FORMS, GRIDS, WIDTH, conv, form, loop
from tests.fit_model.attention.mixing import (
    MASKS,
    all_finite,
    everywhere_random,
    mask,
    same_forward_and_backward,
    sequences,
)


@pytest.mark.parametrize(
    ("num_tokens", "seen"),
    [*((n, seen) for n in (1, 5) for seen in MASKS), (63, "a sequence of nothing")],
)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_its_loop_forward_and_backward(name, num_tokens, seen):
    mixer = everywhere_random(form(name, num_tokens), seed=num_tokens)
    x = sequences(num_tokens, WIDTH).requires_grad_()
    may_attend = mask(seen, num_tokens)
    found, wanted = mixer(x, may_attend), loop(mixer, x, may_attend)
    same_forward_and_backward((found,), (wanted,), [x, *mixer.parameters()])


@pytest.mark.parametrize("name", ["full", "full of rank 3, wider", "local 40"])
def test_the_rows_of_a_bias_can_be_cut_into_blocks(monkeypatch, name):
    mixer = everywhere_random(form(name, 63))
    x = sequences(63, WIDTH).requires_grad_()
    monkeypatch.setattr(biased_means, "BIASES_A_BLOCK", 1)
    monkeypatch.setattr(biased_means, "SCORES_A_PART", 1)
    same_forward_and_backward((mixer(x),), (loop(mixer, x),), [x, *mixer.parameters()])


def far_apart(name, *, seed):
    """A float32 mixer whose keys and biases are both far apart and favour different tokens.

    Every weight is a multiple of 1/8 and every token of 1/2, so that keys are exact in float32.
    """
    mixer = everywhere_random(form(name, 63), seed=seed).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in (mixer.query, mixer.key, mixer.value):
            each.weight.copy_((each.weight * 8).round() / 8)
            if each.bias is not None:
                each.bias.copy_((each.bias * 8).round() / 8)
        mixer.key.weight.mul_(16)
        for parameter_name, parameter in mixer.named_parameters():
            if parameter_name.endswith((".w", ".u", ".v")):
                wide = 150 if parameter_name.endswith(".w") else 10
                parameter.copy_((wide * torch.rand(parameter.shape, generator=generator)).round())
                parameter.sub_(wide // 2)
            if parameter_name.endswith(("gamma", "beta")):
                parameter.copy_(torch.tensor([-40.0, -90.0, 60.0])[: len(parameter)])
    x = (sequences(63, WIDTH, seed=seed).float() * 2).round() / 2
    return mixer, x


@pytest.mark.parametrize("seen", ["everything", "padding"])
@pytest.mark.parametrize("name", FORMS)
def test_nothing_is_lost_where_keys_and_biases_favour_tokens_far_apart(name, seen):
    mixer, x = far_apart(name, seed=1)
    may_attend = mask(seen, 63)
    parameters = list(mixer.parameters())
    x.requires_grad_()
    found, wanted = mixer(x, may_attend), loop(mixer, x, may_attend)
    assert not wanted.isnan().any()
    torch.testing.assert_close(found.double(), wanted, atol=2e-4, rtol=2e-4)
    direction = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad((found * direction).sum(), [x, *parameters], allow_unused=True)
    theirs = torch.autograd.grad((wanted * direction).sum(), [x, *parameters], allow_unused=True)
    largest = max(float(other.abs().max()) for other in theirs if other is not None)
    for one, other in zip(ours, theirs, strict=True):
        if other is None:  # the bias beyond an empty window
            assert not one.any()
            continue
        scale = max(float(other.abs().max()), 1e-3 * largest)  # a bias of keys has none but noise
        torch.testing.assert_close(one.double() / scale, other.double() / scale, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["full", "full, causal", "local 40", "conv, three heads"])
def test_the_sums_that_lose_digits_are_really_met(monkeypatch, name):
    module = "fit_model.attention." + ("aft_conv" if "conv" in name else "biased_means")
    mixer, x = far_apart(name, seed=1)
    monkeypatch.setattr(f"{module}.by_softmax", None)
    with pytest.raises(TypeError):
        mixer(x)


@pytest.mark.parametrize("seen", MASKS)
@pytest.mark.parametrize("name", FORMS)
def test_numbers_of_thousands_stay_finite_and_so_do_their_gradients(name, seen):
    mixer = everywhere_random(form(name, 63)).float()
    assert all_finite(mixer, 3000 * sequences(63, WIDTH).float(), mask(seen, 63))


@pytest.mark.parametrize("name", CAUSAL)
def test_no_token_sees_a_later_one_not_even_its_rounding(name):
    mixer, x = far_apart(name, seed=3)
    changed = x.clone()
    changed[:, 40:] *= -500
    torch.testing.assert_close(mixer(changed)[:, :40], mixer(x)[:, :40], atol=0, rtol=0)
    assert not torch.equal(mixer(changed)[:, 40:], mixer(x)[:, 40:])
    x.requires_grad_()
    mixer(x)[:, :40].sum().backward()
    assert x.grad[:, :40].any()
    assert not x.grad[:, 40:].any()


@pytest.mark.parametrize("name", CAUSAL)
def test_a_prefix_alone_has_the_results_it_has_in_a_longer_sequence(name):
    mixer = everywhere_random(form(name, 63))
    x = sequences(63, WIDTH)
    torch.testing.assert_close(mixer(x[:, :37]), mixer(x)[:, :37], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_a_token_that_nobody_sees_changes_no_other_and_a_batch_mate_none(name):
    mixer, x = far_apart(name, seed=4)
    may_attend = mask("padding", 63)
    hidden = ~may_attend[:, 0, 0]
    changed = x.clone()
    changed[hidden] = 3000.0
    before, after = mixer(x, may_attend), mixer(changed, may_attend)
    torch.testing.assert_close(before[~hidden], after[~hidden], atol=0, rtol=0)
    x.requires_grad_()
    mixer(x, may_attend)[~hidden].sum().backward()
    assert not x.grad[hidden].any()
    alone = mixer(x[1:2], may_attend[1:2])
    torch.testing.assert_close(before[1:2], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_bfloat16_agrees_with_float32_to_its_own_digits(name):
    mixer = everywhere_random(form(name, 63)).float()
    x = sequences(63, WIDTH).float()
    wanted = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = mixer(x)
    low = mixer.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    for found in (mixed, low):
        assert (found.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def kept_bytes(mixer, x):
    """What stays between the forward and the backward pass, each memory counted once."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = mixer(x)
    y.sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize("name", [name for name in FORMS if name not in ("full", "local 1")])
def test_what_is_kept_for_gradients_grows_like_the_sequence(monkeypatch, name):
    monkeypatch.setitem(GRIDS, 256, (16, 16))
    monkeypatch.setitem(GRIDS, 512, (32, 16))
    short, long = (kept_bytes(form(name, n), torch.randn(4, n, WIDTH)) for n in (256, 512))
    assert long < 2.2 * short


@pytest.mark.parametrize("name", ["full", "full_causal", "simple", "local", "local_causal", "conv"])
def test_golden_files_are_met(shared, capsys, name):
    assert parity.main([str(shared / f"golden/ops/aft_{name}.npz")]) == 0
    printed = capsys.readouterr().out
    assert "weight_grads/value" not in printed
    assert "weight_grads/v.weight" in printed


def test_a_filter_starts_as_no_bias_and_can_leave_it():
    mixer = conv(63, kernel=3, heads=2).double()
    x = sequences(63, WIDTH)
    loss = (mixer(x) * torch.randn(x.shape, dtype=torch.float64)).sum()
    loss.backward()
    assert not mixer.position_bias.raw.grad.any()
    assert mixer.position_bias.gamma.grad.all()
    assert mixer.position_bias.beta.grad.all()


def test_sums_over_tokens_are_in_float32_in_whatever_precision_the_layer_runs(monkeypatch):
    mixer = form("conv, one head", 63)
    inside = []

    def mix(key, value):
        inside.append((key.dtype, value.dtype, torch.is_autocast_enabled("cpu")))
        return value

    monkeypatch.setattr(mixer, "mix", mix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixer(torch.randn(2, 63, WIDTH))
    mixer.bfloat16()(torch.randn(2, 63, WIDTH).bfloat16())
    assert inside == [(torch.float32, torch.float32, False)] * 2
