"""Chunk-causal attention in parts is attention under the mask of all pairs, without that mask."""

import pytest
import torch

from fit_model.attention import chunks
from fit_model.attention.chunks import InChunks, chunk_mask
from fit_model.attention.softmax import softmax
from fit_model.attention.softmax_reference import softmax_reference


def heads(*, num_queries: int, num_keys: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, count, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for count in (num_queries, num_keys, num_keys)
    ]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("chunk", "num_queries", "num_keys"),
    [(1, 11, 11), (3, 12, 12), (3, 3, 12), (3, 9, 21), (5, 10, 10)],
)
def test_parts_give_what_the_mask_of_all_pairs_gives(
    monkeypatch, chunk, num_queries, num_keys, padded
):
    monkeypatch.setattr(chunks, "QUERIES_AT_ONCE", 6)
    inputs = heads(num_queries=num_queries, num_keys=num_keys)
    present = None
    wanted = chunk_mask(num_queries, num_keys, chunk=chunk)
    if padded:  # places of the second image that hold nothing come last
        present = torch.ones(2, 1, 1, num_keys, dtype=torch.bool)
        present[1, ..., -chunk:] = False
        wanted = wanted & present
    mixed = InChunks(attend=softmax, chunk=chunk)(*inputs, may_attend=present)
    found = [mixed, *torch.autograd.grad(mixed.square().sum(), inputs)]
    reference = softmax_reference(*inputs, may_attend=wanted)
    expected = [reference, *torch.autograd.grad(reference.square().sum(), inputs)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_no_part_holds_the_pairs_of_more_queries_than_it_may(monkeypatch):
    monkeypatch.setattr(chunks, "QUERIES_AT_ONCE", 6)
    seen = []

    def spy(query, key, value, *, may_attend=None):
        seen.append((query.shape[2], key.shape[2], tuple(may_attend.shape[2:])))
        return softmax(query, key, value, may_attend=may_attend)

    with torch.no_grad():
        InChunks(attend=spy, chunk=2)(*heads(num_queries=16, num_keys=16))
    assert seen == [(6, 6, (6, 6)), (6, 12, (6, 12)), (4, 16, (4, 16))]
