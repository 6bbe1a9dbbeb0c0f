"""FNet is the real part of a Fourier sum, forward and backward."""

import itertools
import math

import pytest
import torch

from fit_model import parity
from fit_model.attention.fnet import Fnet, FnetConfig
from fit_model.attention.place import Place
from tests.fit_model.attention.mixing import (
    MASKS,
    all_finite,
    mask,
    same_forward_and_backward,
    seen_tokens,
    sequences,
)


def mixer(place=None, **settings):
    return Fnet(FnetConfig(**settings), width=6, heads=3, place=place or Place())


def loop(x, may_attend, *, length=None):
    """Every frequency is a sum of cosines over tokens and channels, up to the last that is seen."""
    batch, places, width = x.shape
    rows = []
    for b in range(batch):
        seen = seen_tokens(may_attend, b, places)
        num_tokens = length or max(seen, default=-1) + 1
        for t in range(places):
            for c in range(width):
                number = torch.zeros((), dtype=torch.float64)
                for n in seen if t < num_tokens else ():
                    turns = [t * n / num_tokens + c * k / width for k in range(width)]
                    waves = torch.tensor(
                        [math.cos(2 * math.pi * turn) for turn in turns], dtype=torch.float64
                    )
                    number = number + (x[b, n] * waves).sum()
                rows.append(number)
    return torch.stack(rows).reshape(x.shape)


@pytest.mark.parametrize("seen", MASKS)
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_fnet_is_a_loop_forward_and_backward(num_tokens, seen):
    x, may_attend = sequences(num_tokens, 3).requires_grad_(), mask(seen, num_tokens)
    same_forward_and_backward([mixer()(x, may_attend)], [loop(x, may_attend)], [x])


def test_fnet_is_a_loop_on_63_tokens():
    x = sequences(63, 2, batch=1).requires_grad_()
    same_forward_and_backward([mixer()(x)], [loop(x, None)], [x])


@pytest.mark.parametrize("seen", MASKS)
def test_a_place_of_known_length_fills_shorter_sequences_up_with_zeros(seen):
    x, may_attend = sequences(5, 3).requires_grad_(), mask(seen, 5)
    found = mixer(Place(num_tokens=7))(x, may_attend)
    same_forward_and_backward([found], [loop(x, may_attend, length=7)], [x])


def test_what_a_batch_is_filled_up_to_changes_no_sequence():
    x, model = sequences(9, 6, batch=2), mixer()
    seen = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    seen[1, ..., 5:] = False
    torch.testing.assert_close(model(x, seen)[1, :5], model(x[1:, :5])[0], atol=1e-12, rtol=0)


def test_a_grid_is_transformed_along_rows_columns_and_channels():
    x = sequences(6, 3, batch=1)
    model = mixer(Place(grid=(2, 3)), transform="grid")
    found = torch.zeros(2, 3, 3, dtype=torch.float64)
    for r, q, c in itertools.product(range(2), range(3), range(3)):
        for n in range(6):
            for k in range(3):
                turn = r * (n // 3) / 2 + q * (n % 3) / 3 + c * k / 3
                found[r, q, c] += x[0, n, k] * math.cos(2 * math.pi * turn)
    torch.testing.assert_close(model(x)[0], found.reshape(6, 3), atol=1e-12, rtol=0)
    assert (model(x) - mixer()(x)).abs().max() > 0.1


def test_orthonormal_divides_by_the_root_of_all_numbers():
    x = sequences(5, 6)
    torch.testing.assert_close(mixer(scale="orthonormal")(x), mixer()(x) / math.sqrt(30))


def test_unseen_tokens_and_batch_mates_change_nothing_and_order_matters():
    x, seen, model = sequences(9, 6), mask("padding", 9), mixer()
    other = torch.where(seen[:, 0, 0, :, None], x, 1e3)
    assert torch.equal(model(other, seen), model(x, seen))
    torch.testing.assert_close(model(x[1:2], seen[1:2]), model(x, seen)[1:2], atol=1e-12, rtol=0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert (model(x[:, order]) - model(x)[:, order]).abs().max() > 0.1


@pytest.mark.parametrize("seen", MASKS)
def test_large_inputs_stay_finite_and_nothing_gives_zeros(seen):
    assert all_finite(mixer(), 3000 * sequences(63, 6).float(), mask(seen, 63))
    nothing = mask("a sequence of nothing", 63)
    assert (mixer()(sequences(63, 6), nothing)[0] == 0).all()


def test_bfloat16_is_within_one_percent():
    x = sequences(63, 6)
    found, wanted = mixer()(x.bfloat16()), mixer()(x)
    assert found.dtype == torch.bfloat16
    assert (found.double() - wanted).abs().max() < 0.01 * wanted.abs().max()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="fnet cannot keep single pairs"):
        mixer()(sequences(5, 6), torch.ones(1, 1, 5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="fnet mixes all tokens and has no causal form"):
        mixer(Place(causal="tokens"))
    with pytest.raises(ValueError, match="fnet with transform 'grid' works on a grid"):
        mixer(transform="grid")
    with pytest.raises(ValueError, match="but 1 tokens stand before it"):
        mixer(Place(grid=(2, 3), prefix=1), transform="grid")
    with pytest.raises(ValueError, match="a grid of 2 x 3 and cannot take 5 tokens"):
        mixer(Place(grid=(2, 3)), transform="grid")(sequences(5, 6))


def test_the_golden_file_is_met_with_its_gradient(shared, capsys):
    assert parity.main([str(shared / "golden/ops/fnet.npz")]) == 0
    assert capsys.readouterr().out.count(" ok\n") == 2
