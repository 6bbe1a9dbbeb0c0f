"""One level from logits: held to NumPy, and to frequencies."""

import numpy as np
import pytest
import torch

from fit_model.choosing import DecodingConfig, chances, choose, uniforms

LAST_BELOW_1 = 1.0 - 2.0**-53


def random_logits(rows, levels, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(rows, levels, generator=generator, dtype=torch.float64)


def numpy_chances(logits, *, temperature=1.0, top_k=None, top_p=None):
    """A level at a time, likeliest first, until enough are kept."""
    weights = np.exp(np.asarray(logits) / temperature)
    weights = weights / weights.sum()
    likeliest_first = sorted(range(len(weights)), key=lambda level: -weights[level])
    likeliest_first = likeliest_first[: top_k or len(weights)]
    enough = (2.0 if top_p is None else top_p) * weights[likeliest_first].sum()
    kept, reached = np.zeros(len(weights)), 0.0
    for level in likeliest_first:
        kept[level] = weights[level]
        reached += weights[level]
        if reached >= enough:
            break
    return kept / kept.sum()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 4},
        {"top_k": 100},
        {"top_p": 1e-6},
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"top_k": 5, "top_p": 0.8, "temperature": 1.7},
    ],
    ids=str,
)
def test_levels_are_kept_and_weighed_as_in_numpy(settings):
    logits = random_logits(20, 11)
    found = chances(logits, config=DecodingConfig(**settings))
    found = found / found.sum(-1, keepdim=True)
    wanted = [numpy_chances(row, **settings) for row in logits]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_of_equally_likely_levels_the_lower_ones_are_kept():
    found = chances(torch.zeros(1, 6, dtype=torch.float64), config=DecodingConfig(top_k=2))
    assert found.nonzero()[:, 1].tolist() == [0, 1]


def test_temperature_0_takes_the_likeliest_level_whatever_the_random_number():
    logits = random_logits(50, 9)
    uniform = uniforms(torch.tensor([4]), count=50)[0]
    found = choose(logits, uniform, config=DecodingConfig(temperature=0.0, top_p=0.5))
    assert torch.equal(found, torch.from_numpy(logits.numpy().argmax(1)))


@pytest.mark.parametrize("uniform", [0.0, 0.5, LAST_BELOW_1])
def test_a_level_left_out_is_never_chosen_and_every_number_chooses_one(uniform):
    logits = random_logits(200, 31).to(torch.float32)
    logits[:, [0, 30]] = -torch.inf
    everywhere = torch.full((200,), uniform, dtype=torch.float64)
    for settings in ({}, {"top_k": 3}, {"top_p": 0.3}):
        config = DecodingConfig(**settings)
        kept = chances(logits.double(), config=config) > 0.0
        found = choose(logits, everywhere, config=config)
        assert kept.gather(1, found[:, None]).all()


def test_frequencies_are_those_of_the_softmax():
    logits = torch.tensor([[0.3, -1.0, 1.2, 0.0, -0.4]])
    count = 20_000
    found = choose(
        logits.expand(count, -1),
        uniforms(torch.tensor([7]), count=count)[0],
        config=DecodingConfig(),
    )
    wanted = count * numpy_chances(logits[0])
    seen = np.bincount(found.numpy(), minlength=5)
    chi_square = ((seen - wanted) ** 2 / wanted).sum()
    assert chi_square < 13.3  # 99 % of fair draws stay below, with 4 degrees of freedom


def test_guidance_leads_away_from_the_logits_without_a_label():
    with_label, without_label = random_logits(10, 8), random_logits(10, 8, seed=1)
    found = choose(
        torch.cat([with_label, without_label]),
        torch.zeros(10, dtype=torch.float64),
        config=DecodingConfig(temperature=0.0, guidance=1.5),
    )
    wanted = with_label + 1.5 * (with_label - without_label)
    assert torch.equal(found, wanted.argmax(-1))
    assert not torch.equal(found, with_label.argmax(-1))


def test_random_numbers_belong_to_the_seed_alone():
    together = uniforms(torch.tensor([3, 5, 3]), count=6)
    assert torch.equal(together[1:2], uniforms(torch.tensor([5]), count=6))
    assert torch.equal(together[0], together[2])
    assert (together[0] != together[1]).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature holds nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"guidance": float("inf")}, "guidance holds inf"),
    ],
)
def test_settings_without_meaning_are_refused_in_one_line(settings, said):
    with pytest.raises(ValueError, match=said) as refused:
        DecodingConfig(**settings)
    assert "\n" not in str(refused.value)


def test_numbers_that_are_not_finite_are_refused():
    logits = torch.tensor([[0.0, float("nan"), 1.0]])
    with pytest.raises(ValueError, match="not finite: it was saved after it had diverged"):
        choose(logits, torch.zeros(1, dtype=torch.float64), config=DecodingConfig())
