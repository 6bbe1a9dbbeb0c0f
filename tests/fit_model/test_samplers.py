"""Sampling goes the official way: against a loop in numpy, known posteriors and known data."""

import itertools
import math

import numpy as np
import pytest
import torch

from fit_model.noise import PREDICTIONS, Estimate, noised, schedule
from fit_model.samplers import SAMPLERS, SamplingConfig, guided, sample, times

SHAPE = (3, 4, 5)
NAMES = ("cosine", "sigmoid@-3,3,0.9", "simple_linear", "log@1,100,f")


def noises(count, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=generator, dtype=dtype)


def refuse():
    raise AssertionError("no noise is needed here")


def network(noisy, gamma):
    """Any smooth function of both: what is predicted need not be good."""
    return 0.7 * torch.tanh(noisy * (0.5 + gamma)) + 0.3 * torch.roll(noisy, 1, -1)


def drawn(config, *, start, draws=None, name="cosine", prediction="eps", limit=1.0, **others):
    """A sample with the network above, the noises drawn in order."""
    left = iter(() if draws is None else draws)
    return sample(
        others.pop("denoise", network), start, config=config, schedule=schedule(name),
        prediction=prediction, limit=limit, draw=lambda: next(left), **others,
    )  # fmt: skip


def official(config, *, start, draws, gamma_of, prediction, limit):
    """The official loop in numpy, from its formulas as published, in the precision of start."""

    def seen(x, gamma):
        out = network(torch.from_numpy(x), torch.tensor(gamma, dtype=torch.float64)).numpy()
        if prediction == "eps":
            clean = (x - math.sqrt(1 - gamma) * out) / math.sqrt(gamma)
        elif prediction == "v":
            clean = math.sqrt(gamma) * x - math.sqrt(1 - gamma) * out
        else:
            clean = out
        assert clean.dtype == x.dtype
        clean = np.clip(clean, -limit, limit)
        return clean, (x - math.sqrt(gamma) * clean) / math.sqrt(1 - gamma)

    x, clean = start.numpy(), None
    for k in range(config.steps):
        now = gamma_of(1 - k / config.steps)
        then = gamma_of(max(1 - (k + 1 + config.time_shift) / config.steps, 0))
        clean, noise = seen(x, now)
        if config.sampler == "ddim":
            x = clean * math.sqrt(then) + noise * math.sqrt(1 - then)
            continue
        alpha = min(math.exp(math.log(now) - math.log(then)), 1)
        mean = (x - (1 - alpha) / math.sqrt(1 - now) * noise) / math.sqrt(alpha)
        variance = 1 - alpha
        if config.sampler == "ddpm@small":
            variance *= (1 - then) / (1 - now)
        x = mean + math.sqrt(variance) * draws[k].numpy()
    return clean


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("time_shift", [0.0, 0.75])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_goes_the_official_way(sampler, prediction, time_shift, dtype, tolerance):
    config = SamplingConfig(sampler=sampler, steps=7, time_shift=time_shift)
    start, *draws = noises(8, dtype=dtype)
    curve = schedule("sigmoid@-3,3,0.9")

    def gamma_of(t):
        return float(curve(torch.tensor(t, dtype=dtype)))

    wanted = official(
        config, start=start, draws=draws, gamma_of=gamma_of, prediction=prediction, limit=0.2
    )
    found = drawn(
        config, start=start, draws=draws, name="sigmoid@-3,3,0.9", prediction=prediction, limit=0.2
    )
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=tolerance)
    assert 0 < (np.abs(wanted) < 0.199).mean() < 1


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_ddim_with_perfect_predictions_stays_on_the_straight_way(name, prediction, steps):
    clean, noise = noises(2)
    seen = []

    def perfect(noisy, gamma):
        torch.testing.assert_close(noisy, noised(clean, noise, gamma), rtol=0, atol=1e-5)
        seen.append(float(gamma))
        return PREDICTIONS[prediction].target(clean, noise, gamma)

    curve = schedule(name)
    found = sample(
        perfect, noised(clean, noise, curve(torch.tensor(1.0, dtype=torch.float64))),
        config=SamplingConfig(steps=steps), schedule=curve, prediction=prediction, limit=None,
        draw=refuse,
    )  # fmt: skip
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-4)
    assert len(seen) == steps
    assert seen == sorted(seen)


@pytest.mark.parametrize("name", NAMES)
def test_ddpm_keeps_the_spread_that_its_variance_is_right_for(name):
    gamma = schedule(name)(torch.linspace(1, 0.02, 40, dtype=torch.float64))
    zero, one = gamma.new_zeros(()), gamma.new_ones(())
    for now, then in itertools.pairwise(gamma):
        only_noise = Estimate(clean=zero, noise=one)  # data at one point: the rest has 1 - gamma
        small = SAMPLERS["ddpm@small"]((1 - now).sqrt(), only_noise, now, then)
        torch.testing.assert_close(small.mean**2 + small.deviation**2, 1 - then)
        expected = Estimate(clean=now.sqrt(), noise=(1 - now).sqrt())  # standard normal data
        large = SAMPLERS["ddpm@large"](one, expected, now, then)
        torch.testing.assert_close(large.mean**2 + large.deviation**2, one)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rounding_in_a_flat_schedule_gives_no_nan(sampler):
    noisy, then = noises(1)[0], torch.tensor(0.5, dtype=torch.float64)
    follows = SAMPLERS[sampler](noisy, Estimate(clean=noisy, noise=noisy), then + 1e-15, then)
    assert follows.mean.isfinite().all()
    assert follows.deviation is None or follows.deviation == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_normal_data_is_sampled_with_its_mean_and_deviation(sampler):
    mean, deviation = 0.4, 0.3
    generator = torch.Generator().manual_seed(1)

    def draw():
        return torch.randn(20000, generator=generator)

    def best(noisy, gamma):
        """The noise to be expected when the data are normal."""
        variance = gamma * deviation**2 + 1 - gamma
        return (1 - gamma).sqrt() * (noisy - gamma.sqrt() * mean) / variance

    found = sample(
        best, draw(), config=SamplingConfig(sampler=sampler, steps=300),
        schedule=schedule("cosine"), prediction="eps", limit=None, draw=draw,
    )  # fmt: skip
    assert float(found.mean()) == pytest.approx(mean, abs=0.01)
    assert float(found.std()) == pytest.approx(deviation, abs=0.015)


@pytest.mark.parametrize(("sampler", "tolerance"), [("ddim", 1e-5), ("ddpm", 1e-3)])
def test_single_precision_gives_the_samples_of_double_precision(sampler, tolerance):
    config = SamplingConfig(sampler=sampler, steps=20)
    start, *draws = noises(21, dtype=torch.float32)
    single = drawn(config, start=start, draws=draws, prediction="v")
    double = drawn(
        config, start=start.double(), draws=[noise.double() for noise in draws], prediction="v"
    )
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=tolerance)


def test_half_precision_pictures_are_sampled_with_exact_noise_levels():
    start = noises(1, dtype=torch.float32)[0].to(torch.bfloat16)
    found = drawn(SamplingConfig(steps=100), start=start, prediction="x")
    wanted = drawn(SamplingConfig(steps=100), start=start.double(), prediction="x")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=0.05)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_noise_gives_the_same_picture(sampler):
    config = SamplingConfig(sampler=sampler, steps=5)
    start, *draws = noises(6)
    kept = start.clone()
    first, again = (drawn(config, start=start, draws=draws) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(start, kept)
    assert not torch.equal(first, drawn(config, start=draws[0], draws=draws))
    other = drawn(config, start=start, draws=draws[::-1])
    assert torch.equal(first, other) == (sampler == "ddim")


def test_ddpm_draws_once_between_two_steps():
    start, *draws = noises(5)
    drawn(SamplingConfig(sampler="ddpm", steps=5), start=start, draws=draws)
    with pytest.raises(StopIteration):
        drawn(SamplingConfig(sampler="ddpm", steps=6), start=start, draws=draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_network_sees_a_noise_level_for_all_images_in_the_precision_of_the_picture(dtype):
    seen = []

    def denoise(noisy, gamma):
        assert gamma.shape == ()
        assert gamma.dtype == noisy.dtype == dtype
        seen.append(float(gamma))
        return noisy

    steps = []
    drawn(
        SamplingConfig(steps=4), start=noises(1)[0].to(dtype), denoise=denoise,
        name="simple_linear", progress=lambda: steps.append(len(seen)),
    )  # fmt: skip
    assert seen == pytest.approx([1e-9, 0.25, 0.5, 0.75], rel=0.01, abs=0)
    assert steps == [1, 2, 3, 4]


def test_a_sampling_schedule_takes_the_place_of_the_one_of_training():
    start = noises(1)[0]
    other = SamplingConfig(steps=6, schedule="simple_linear")
    found = drawn(other, start=start, name="cosine")
    assert torch.equal(found, drawn(SamplingConfig(steps=6), start=start, name="simple_linear"))
    assert not torch.equal(found, drawn(SamplingConfig(steps=6), start=start, name="cosine"))


def test_a_time_shift_makes_each_step_lead_further():
    here, there = times(steps=4, time_shift=0.5, dtype=torch.float32)
    assert here.tolist() == [1, 0.75, 0.5, 0.25]
    assert there.tolist() == [0.625, 0.375, 0.125, 0]
    _, plain = times(steps=4, time_shift=0.0, dtype=torch.float64)
    assert plain.tolist() == [0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["sigmoid@-3,3,0.01", "log@1,100,f", "cosine@-0.5,1,1"])
def test_schedules_that_keep_all_signal_early_give_finite_pictures(name, sampler):
    start, *draws = noises(21, dtype=torch.float32)
    config = SamplingConfig(sampler=sampler, steps=20, time_shift=1.5)
    found = drawn(config, start=start, draws=draws, name=name, limit=2.0)
    assert found.isfinite().all()
    assert found.abs().max() <= 2


def test_guidance_goes_beyond_the_label():
    with_label, without = noises(2)
    assert torch.equal(guided(with_label, without, guidance=0.0), with_label)
    found = guided(with_label, without, guidance=1.5)
    torch.testing.assert_close(found, with_label + 1.5 * (with_label - without))
    np.testing.assert_allclose(found.numpy(), 2.5 * with_label.numpy() - 1.5 * without.numpy())


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("sampler", "ddmp", "choose one of ddim, ddpm"),
        ("sampler", "ddpm@medium", "ddpm@small"),
        ("steps", 0, "at least 1"),
        ("schedule", "cosin", "did you mean 'cosine'"),
        ("guidance", -0.5, "0 is none"),
        ("guidance", math.inf, "finite"),
        ("time_shift", math.nan, "finite"),
        ("time_shift", -1.0, "above -1"),
    ],
)
def test_settings_that_cannot_be_sampled_with_are_refused(setting, value, remedy):
    with pytest.raises(ValueError, match=remedy) as failure:
        SamplingConfig(**{setting: value})
    assert str(value) in str(failure.value)
    assert setting in str(failure.value)
