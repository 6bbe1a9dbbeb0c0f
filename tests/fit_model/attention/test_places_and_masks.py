"""A mixer is told where it stands and which tokens are seen, and says so when that cannot be."""

import pytest
import torch

from fit_model.attention.place import Place
from fit_model.attention.seen import keys_seen, zero_unseen, zero_without_seen


def test_masks_of_whole_tokens_pass_and_all_others_are_refused():
    seen = torch.rand(3, 1, 1, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(keys_seen(seen, name="x"), seen[:, 0, 0])
    assert keys_seen(seen[:1], name="x").shape == (1, 5)
    assert keys_seen(None, name="x") is None
    for shape in [(3, 1, 5, 5), (3, 2, 1, 5), (1, 1, 5, 1)]:
        with pytest.raises(ValueError, match=r"^thing cannot keep .* softmax$"):
            keys_seen(torch.ones(shape, dtype=torch.bool), name="thing")


def test_what_is_not_seen_becomes_zero_and_sends_no_gradient_even_from_nan():
    x = torch.tensor([[[1.0], [float("nan")]], [[2.0], [3.0]]], requires_grad=True)
    seen = torch.tensor([[True, False], [True, True]])
    hidden = zero_unseen(x, seen)
    assert torch.equal(hidden, torch.tensor([[[1.0], [0.0]], [[2.0], [3.0]]]))
    hidden.square().sum().backward()
    assert torch.equal(x.grad, torch.tensor([[[2.0], [0.0]], [[4.0], [6.0]]]))
    some = torch.tensor([[True, False], [False, False]])
    assert torch.equal(zero_without_seen(hidden, some)[1], torch.zeros(2, 1))
    assert torch.equal(zero_without_seen(hidden, some)[0], hidden[0])
    assert zero_unseen(x, None) is zero_without_seen(x, None) is x


def test_a_place_knows_its_length_from_its_grid():
    assert Place(grid=(3, 4), prefix=1).length(operator="x") == 13
    assert Place(num_tokens=7).length(operator="x") == 7
    assert Place(num_tokens=13, grid=(3, 4), prefix=1).raster(operator="x") == (3, 4)
    Place().refuse_causal(operator="x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tokens": 0}, "num_tokens is 0; a sequence has at least one token"),
        ({"grid": (0, 4)}, r"grid is \(0, 4\); give rows and columns"),
        ({"prefix": -1}, "prefix is -1; it counts tokens"),
        ({"num_tokens": 12, "grid": (3, 4), "prefix": 1}, "num_tokens is 12, but a grid .* 13"),
        ({"causal": "chunks"}, "causal is 'chunks' and chunk None; give the tokens of a chunk"),
        ({"chunk": 3}, "causal is 'none' and chunk 3; give the tokens of a chunk for 'chunks'"),
        ({"causal": "chunks", "chunk": 0}, "chunk is 0; a chunk has at least one token"),
    ],
)
def test_a_place_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Place(**settings)


def test_what_an_operator_misses_is_said_under_its_name():
    with pytest.raises(ValueError, match=r"^thing has weights for every position"):
        Place().length(operator="thing")
    with pytest.raises(ValueError, match=r"^thing works on a grid"):
        Place(num_tokens=4).raster(operator="thing")
    with pytest.raises(ValueError, match=r"^thing mixes all tokens and has no causal form; use"):
        Place(causal="tokens").refuse_causal(operator="thing")
