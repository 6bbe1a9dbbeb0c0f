"""LAMB makes the steps of its formulas, also when several hold a share of one parameter each."""

import threading

import numpy as np
import pytest
import torch

from fit_model.lamb import Lamb
from tests.fit_model.numpy_lamb import NumpyLamb

BETAS, EPS = (0.9, 0.99), 1e-8
RATES = (0.3, 0.1, 0.2, 0.05, 0.01, 0.3)


def weights_and_gradients(*shape: int, seed: int, start: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    weight = start * torch.randn(shape, generator=generator)
    return weight, [torch.randn(shape, generator=generator) for _ in RATES]


def train(weight: torch.Tensor, gradients: list[torch.Tensor], **settings) -> torch.Tensor:
    parameter = torch.nn.Parameter(weight.clone())
    adapted = settings.pop("adapted", True)
    groups = [{"params": [parameter], "adapted": adapted}]
    optimizer = Lamb(groups, lr=0.0, betas=BETAS, eps=EPS, **settings)
    for lr, gradient in zip(RATES, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def reference(weight, gradients, *, decay: float = 0.0, adapted: bool = True) -> np.ndarray:
    lamb = NumpyLamb(weight.numpy(), decay, adapted, BETAS, EPS)
    for lr, gradient in zip(RATES, gradients, strict=True):
        lamb.step(gradient.numpy(), lr=lr)
    return lamb.weight


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("shape", [(1,), (5,), (7, 9)])
@pytest.mark.parametrize("start", [0.01, 10.0])
def test_lamb_makes_the_steps_of_its_formulas(shape, adapted, decay, start):
    weight, gradients = weights_and_gradients(*shape, seed=1, start=start)
    made = train(weight, gradients, weight_decay=decay, adapted=adapted)
    expected = reference(weight, gradients, decay=decay, adapted=adapted)
    np.testing.assert_allclose(made.numpy(), expected, rtol=2e-5, atol=1e-6)


def test_weights_of_zero_make_the_plain_step_of_adam():
    weight, gradients = weights_and_gradients(4, 3, seed=2, start=0.0)
    made = train(weight, gradients)
    assert made.abs().min() > 0
    np.testing.assert_allclose(made.numpy(), reference(weight, gradients), rtol=2e-5, atol=1e-6)
    parameter = torch.nn.Parameter(weight.clone())
    parameter.grad = gradients[0].clone()
    Lamb([parameter], lr=0.3, betas=BETAS, eps=EPS).step()
    torch.testing.assert_close(parameter.detach(), -0.3 * gradients[0].sign())


def test_gradients_of_zero_leave_the_weights_as_they_are():
    weight, gradients = weights_and_gradients(3, seed=3)
    made = train(weight, [torch.zeros_like(each) for each in gradients])
    assert torch.equal(made, weight)


def test_a_parameter_without_a_gradient_is_left_alone():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = Lamb([used, unused], lr=0.1, weight_decay=0.5)
    used.grad = torch.ones(2)
    optimizer.step()
    assert not torch.equal(used.detach(), torch.ones(2))
    assert torch.equal(unused.detach(), torch.ones(2))
    assert unused not in optimizer.state


def test_a_step_without_adaptation_is_the_one_of_adamw():
    weight, gradients = weights_and_gradients(6, seed=4)
    parameter = torch.nn.Parameter(weight.clone())
    adamw = torch.optim.AdamW([parameter], betas=BETAS, eps=EPS, weight_decay=0.2)
    for lr, gradient in zip(RATES, gradients, strict=True):
        adamw.param_groups[0]["lr"] = lr
        parameter.grad = gradient.clone()
        adamw.step()
    made = train(weight, gradients, weight_decay=0.2, adapted=False)
    torch.testing.assert_close(made, parameter.detach())


def test_holders_of_shares_make_the_steps_of_the_whole_parameter():
    weight, gradients = weights_and_gradients(10, seed=5)
    meeting, squares, shares = threading.Barrier(2), [None, None], [None, None]

    def hold(rank: int) -> None:
        def total(own: torch.Tensor) -> torch.Tensor:
            squares[rank] = own
            meeting.wait(30)
            both = squares[0] + squares[1]
            meeting.wait(30)
            return both

        part = slice(0, 4) if rank == 0 else slice(4, 10)
        mine = [each[part] for each in gradients]
        shares[rank] = train(weight[part], mine, weight_decay=0.1, total=total)

    threads = [threading.Thread(target=hold, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = reference(weight, gradients, decay=0.1)
    np.testing.assert_allclose(torch.cat(shares).numpy(), expected, rtol=2e-5, atol=1e-6)


def test_a_restored_optimizer_goes_on_as_if_never_stopped():
    weight, gradients = weights_and_gradients(5, seed=6)
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = Lamb([parameter], lr=0.1, betas=BETAS, eps=EPS)
    for lr, gradient in zip(RATES, gradients, strict=True):
        again = Lamb([parameter], lr=0.0, betas=BETAS, eps=EPS)
        again.load_state_dict(optimizer.state_dict())
        optimizer = again
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = gradient.clone()
        optimizer.step()
    assert torch.equal(parameter.detach(), train(weight, gradients))
