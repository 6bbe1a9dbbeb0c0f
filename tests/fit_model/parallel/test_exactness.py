"""Workers that share images get the losses and gradients of one that holds them whole."""

import pytest
import torch

from fit_model.groups import collate
from fit_model.parallel.shares import share_of
from tests.fit_model.parallel.cases import CASES
from tests.fit_model.parallel.work import step, travelled

RELATIVE = 1e-10


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_shared_images_give_every_gradient_of_whole_ones(world, name, groups):
    case = CASES[name]()
    losses, gradients = case.step(range(len(case.images)))
    answers = world.call(step, name, groups)
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
