"""Workers that share images get the losses and gradients of one that holds them whole."""

import pytest
import torch

from fit_model.groups import collate
from fit_model.parallel.shares import share_of
from tests.fit_model.parallel.cases import CASES
from tests.fit_model.parallel.work import step, travelled
from tests.fit_model.parallel.world import World

RELATIVE = 1e-10
EVERY_CASE = [(name, 2 + 2 * (number % 2)) for number, name in enumerate(CASES)]
"""With two workers a group set, and four."""


def assert_same(world: World, name: str, groups: int, bounded: dict | None = None) -> None:
    """Sets of so many workers find what one worker finds that holds the images whole."""
    case = CASES[name]()
    losses, gradients = case.step(range(len(case.images)))
    answers = world.call(step, name, groups, bounded)
    for answer in answers:
        assert not isinstance(answer, str), answer
        chosen, found, _ = answer
        expected = losses[chosen.start : chosen.stop]
        torch.testing.assert_close(torch.tensor(found), expected, rtol=RELATIVE, atol=0.0)
    # keys' biases get no gradient, only its rounding
    floor = 1e-5 * RELATIVE * max(each.norm() for each in gradients.values() if each is not None)
    for parameter, expected in gradients.items():
        found = answers[0][2][parameter]
        if expected is None:
            assert found is None, parameter
        else:
            apart = (torch.tensor(found) - expected).norm()
            assert apart <= RELATIVE * expected.norm() + floor, parameter


@pytest.mark.parametrize(("name", "groups"), EVERY_CASE)
def test_shared_images_give_every_gradient_of_whole_ones(world, name, groups):
    assert_same(world, name, groups)


@pytest.mark.parametrize(("name", "others"), EVERY_CASE)
def test_so_do_they_a_chunk_at_a_time(world, name, others):
    assert_same(world, name, 6 - others, {"groups_a_chunk": 2})


@pytest.mark.parametrize("name", ["encoder, tokens", "diffusion", "autoregressive"])
def test_so_do_they_when_tokens_wait_in_a_file(world, name):
    assert_same(world, name, 2, {"groups_a_chunk": 1, "offload": "disk"})


@pytest.mark.parametrize("name", ["encoder, one latent a group", "autoregressive"])
def test_only_latents_travel(world, name):
    case = CASES[name]()
    trunk, whole = case.model.face.trunk, collate(case.images)
    shares = [share_of(whole, worker=worker, num_workers=4, unit=case.unit) for worker in range(4)]
    groups = 4 * max(len(each.image) for each in shares)
    patches = 4 if case.unit == "rows" else 1
    keys_and_values = groups * patches * trunk.latents_per_group * 2 * trunk.latent_width
    assert max(world.call(travelled, name)) == keys_and_values
    assert keys_and_values < len(whole.image) * case.model.config.num_tokens * trunk.width / 2
