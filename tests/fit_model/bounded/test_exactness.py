"""A bounded step gives the losses and gradients of the body run whole."""

import pytest
import torch

from fit_model.bounded.engine import Bounded
from fit_model.course import WHOLE
from tests.fit_model.bounded.cases import CASES, Case, bounded, encoder, generator

EVERYTHING = 1000


def assert_same(case: Case, runner: Bounded, *, within: float = 1e-10) -> None:
    wanted, gradients = case.step()
    found, again = case.step(runner)
    torch.testing.assert_close(found, wanted, rtol=within, atol=0)
    # keys' biases get no gradient, only its rounding
    floor = 1e-5 * within * max(each.norm() for each in gradients.values() if each is not None)
    for name, gradient in gradients.items():
        if gradient is None:
            assert again[name] is None, name
        else:
            assert (again[name] - gradient).norm() <= within * gradient.norm() + floor, name


@pytest.mark.parametrize("name", CASES)
def test_chunks_with_a_ragged_last_one_change_nothing(name):
    assert_same(CASES[name](), bounded(3))


@pytest.mark.parametrize("offload", ["none", "host", "disk"])
@pytest.mark.parametrize("groups", [1, EVERYTHING])
@pytest.mark.parametrize("name", ["encoder, tokens", "diffusion", "autoregressive"])
def test_neither_the_size_of_chunks_nor_where_tokens_wait_matters(name, groups, offload):
    assert_same(CASES[name](), bounded(groups, offload=offload))


@pytest.mark.parametrize("name", ["encoder, latents", "diffusion, deviation", "autoregressive"])
@torch.no_grad()
def test_measures_are_the_same_without_gradients(name):
    case = CASES[name]()
    seeds = torch.arange(case.batch.num_images)
    wanted = case.model.measures(case.batch, case.targets, seeds=seeds)
    runner = bounded(3, offload="disk")
    found = case.model.measures(case.batch, case.targets, seeds=seeds, runner=runner)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


@pytest.mark.parametrize("frozen", ["encoder.stem", "encoder.trunk.blocks.0", "head", "encoder"])
def test_frozen_weights_get_no_gradient_and_change_no_other(frozen):
    case = encoder(pool="tokens")
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    assert_same(case, bounded(3))


@pytest.mark.parametrize("name", ["encoder, tokens", "diffusion", "autoregressive"])
def test_bf16_stays_as_near_to_float64_as_the_body_run_whole(name):
    case = CASES[name]()
    wanted, exact = case.step()
    case.model.bfloat16()
    errors = []
    for runner in (None, bounded(2, offload="disk")):
        losses, gradients = case.step() if runner is None else case.step(runner)
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses.double(), wanted.double(), rtol=0.05, atol=0.05)
        largest = max(exact, key=lambda each: 0.0 if exact[each] is None else exact[each].norm())
        assert gradients[largest].dtype == torch.bfloat16
        error = (gradients[largest].double() - exact[largest]).norm() / exact[largest].norm()
        errors.append(float(error))
    assert errors[1] < 1.5 * errors[0] + 0.01


@pytest.mark.parametrize("kind", ["encoder", "diffusion", "autoregressive"])
def test_dropout_repeats_itself_backwards(kind):
    """The slope that the backward pass gives is the one that the same chance shows forwards."""
    trunk = {"dropout": 0.3, "drop_path": 0.3}
    # a first pass takes part forwards, but not backwards
    face = {"self_conditioning": "none"} if kind == "diffusion" else {}
    case = encoder(trunk=trunk) if kind == "encoder" else generator(kind, trunk=trunk, **face)
    case.model.train()
    parameters = list(case.model.parameters())
    directions = [torch.randn_like(each) for each in parameters]

    def losses(step: float) -> torch.Tensor:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(step * direction)
        torch.manual_seed(5)
        return case.step(bounded(3))[0]

    small = 1e-6
    middle = losses(0.0)
    slope = sum(
        (each.grad * direction).sum()
        for each, direction in zip(parameters, directions, strict=True)
        if each.grad is not None
    )
    after, before = losses(small), losses(-2 * small)
    weights = torch.arange(1, 1 + len(middle))
    found = ((after - before) * weights).sum() / (2 * small)
    torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(middle, case.step(bounded(3))[0])


@pytest.mark.parametrize("name", CASES)
def test_engines_hear_of_those_parameters_alone_that_get_a_gradient(name):
    case, heard = CASES[name](), set()
    for parameter_name, parameter in case.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _, parameter_name=parameter_name: heard.add(parameter_name)
        )
    _, gradients = case.step(bounded(5))
    assert heard == {each for each, gradient in gradients.items() if gradient is not None}


def test_mixed_precision_holds_for_what_is_computed_again():
    case, found = encoder(pool="tokens"), []
    case.model.float()
    for runner in (WHOLE, bounded(EVERYTHING)):
        case.model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = case.model.losses(
                case.batch, case.targets, seeds=torch.arange(3), runner=runner
            )
        losses.sum().backward()
        found.append(
            torch.cat([each.grad.flatten() for each in case.model.encoder.trunk.parameters()])
        )
    assert (found[1] - found[0]).norm() < 1e-4 * found[0].norm()


def test_a_course_goes_backwards_once():
    case = encoder()
    seeds = torch.arange(3)
    losses = case.model.losses(case.batch, case.targets, seeds=seeds, runner=bounded())
    losses.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run it forwards again"):
        losses.sum().backward()
