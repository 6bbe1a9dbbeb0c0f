"""The average of the weights starts as a copy of them and forgets at a fixed rate."""

import pytest
import torch

from fit_model.averaging import averaged_weights, keep_average
from fit_model.lamb import Lamb

DECAY = 0.8
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
    "lamb": lambda parameters: Lamb(parameters, lr=0.1, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def steps(optimizer, parameters, *, count: int, seed: int = 0) -> list[list[torch.Tensor]]:
    """The weights before the first step and after each."""
    generator = torch.Generator().manual_seed(seed)
    history = [[each.detach().clone() for each in parameters]]
    for _ in range(count):
        for each in parameters:
            each.grad = torch.randn(each.shape, generator=generator)
        optimizer.step()
        history.append([each.detach().clone() for each in parameters])
    return history


def closed_form(history: list[torch.Tensor]) -> torch.Tensor:
    """decay^T w_0 + (1 - decay) sum_t decay^(T - t) w_t."""
    last = len(history) - 1
    start = DECAY**last * history[0].double()
    rest = [(1 - DECAY) * DECAY ** (last - t) * history[t].double() for t in range(1, last + 1)]
    return sum(rest, start).float()


def made(kind: str, *, average: bool = True):
    generator = torch.Generator().manual_seed(7)
    shapes = [(3, 4), (5,)]
    parameters = [torch.nn.Parameter(torch.randn(each, generator=generator)) for each in shapes]
    optimizer = OPTIMIZERS[kind](parameters)
    if average:
        keep_average(optimizer, decay=DECAY)
    return optimizer, parameters


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_average_starts_as_a_copy_and_follows_its_closed_form(kind, count):
    optimizer, parameters = made(kind)
    history = steps(optimizer, parameters, count=count)
    for number, parameter in enumerate(parameters):
        average = optimizer.state[parameter]["ema"]
        assert average.dtype == torch.float32
        torch.testing.assert_close(average, closed_form([each[number] for each in history]))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_keeping_an_average_changes_no_step(kind):
    with_average = steps(*made(kind), count=4)
    without = steps(*made(kind, average=False), count=4)
    for left, right in zip(with_average[-1], without[-1], strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_restored_average_goes_on_as_if_never_stopped(kind):
    optimizer, parameters = made(kind)
    history = steps(optimizer, parameters, count=3)
    again = OPTIMIZERS[kind](parameters)
    keep_average(again, decay=DECAY)
    again.load_state_dict(optimizer.state_dict())
    history += steps(again, parameters, count=2, seed=1)[1:]
    for number, parameter in enumerate(parameters):
        expected = closed_form([each[number] for each in history])
        torch.testing.assert_close(again.state[parameter]["ema"], expected)


def test_the_averages_take_the_place_of_the_weights_and_go_back_also_after_an_error():
    optimizer, parameters = made("adamw")
    latest = steps(optimizer, parameters, count=3)[-1]
    averages = [optimizer.state[each]["ema"].clone() for each in parameters]

    def fail() -> None:
        with averaged_weights(optimizer):
            for parameter, average in zip(parameters, averages, strict=True):
                assert torch.equal(parameter.detach(), average)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    for parameter, weight, average in zip(parameters, latest, averages, strict=True):
        assert torch.equal(parameter.detach(), weight)
        assert torch.equal(optimizer.state[parameter]["ema"], average)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_that_gets_gradients_late_is_its_own_average_until_then(kind):
    optimizer, (early, late) = made(kind)
    start = late.detach().clone()
    steps(optimizer, [early], count=2)
    with averaged_weights(optimizer):
        assert torch.equal(late.detach(), start)
    history = steps(optimizer, [early, late], count=2)
    late_history = [start, *[each[1] for each in history[1:]]]
    torch.testing.assert_close(optimizer.state[late]["ema"], closed_form(late_history))


def test_an_average_goes_on_towards_weights_that_get_no_more_gradients():
    optimizer, parameters = made("adamw")
    history = steps(optimizer, parameters, count=2)
    for parameter in parameters:
        parameter.grad = None
    optimizer.step()
    for number, parameter in enumerate(parameters):
        weights = [each[number] for each in history]
        expected = closed_form([*weights, weights[-1]])
        torch.testing.assert_close(optimizer.state[parameter]["ema"], expected)
