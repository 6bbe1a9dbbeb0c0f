"""Schedules keep the share of signal that the official ones keep; conversions are inverse."""

import pickle

import numpy as np
import pytest
import torch

from fit_model.noise import (
    PREDICTIONS,
    SCHEDULES,
    clean_from_noise,
    estimate,
    noise_from_clean,
    noised,
    schedule,
    velocity,
)

NAMES = (
    "cosine", "cosine@0,1,1", "cosine@0.2,1,1", "cosine@0,1,0.7", "sigmoid@-3,3,0.9",
    "sigmoid@0,3,0.3", "simple_linear", "log@1,100,f", "log@1,100,true",
)  # fmt: skip
TABLE = {
    "cosine": (0.9999999, 0.97544326, 0.85340067, 0.49988222, 0.14643273, 0.02448388, 6.17e-9),
    "simple_linear": (1, 0.9, 0.75, 0.5, 0.25, 0.1, 1e-9),
    "sigmoid@-3,3,0.9": (1, 0.96721764, 0.86637029, 0.5, 0.13362971, 0.03278236, 1e-9),
    "sigmoid@-3,3,1.0": (1, 0.96050722, 0.85085355, 0.5, 0.14914645, 0.03949278, 1e-9),
    "sigmoid@-3,3,1.1": (1, 0.9543884, 0.83782336, 0.5, 0.16217664, 0.0456116, 1e-9),
}


def pictures():
    generator = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=generator)
    return clean, noise


def test_schedules_are_the_official_ones(shared):
    golden = np.load(shared / "golden/schedules.npz")
    times = torch.from_numpy(golden["inputs/t"])
    names = [name for name in golden.files if name.startswith("outputs/")]
    assert names
    for name in names:
        curve = schedule(name.removeprefix("outputs/"))
        for dtype in (torch.float32, torch.float64):
            found = curve(times.to(dtype))
            assert found.dtype == dtype
            np.testing.assert_allclose(found.numpy(), golden[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TABLE)
def test_schedules_are_those_of_the_facts(name):
    times = torch.tensor([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], dtype=torch.float64)
    found = schedule(name)(times).numpy()
    np.testing.assert_allclose(found, TABLE[name], rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose(found, TABLE[name], rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("start", "end", "tau"), [(0, 1, 1), (0.2, 1, 1.5), (0.1, 0.8, 0.6), (1, 0, 0.7), (-2, 3, 0.4)]
)
def test_the_ends_and_the_temperature_shape_the_curves_of_the_facts(start, end, tau):
    t = np.linspace(0, 1, 101)

    def power(u):
        return np.cos((u * (end - start) + start) * np.pi / 2) ** (2 * tau)

    def sigmoid(place):
        return 1 / (1 + np.exp(-place / tau))

    falling = sigmoid(end) - sigmoid(t * (end - start) + start)
    wanted = {"sigmoid": falling / (sigmoid(end) - sigmoid(start))}
    if {start, end} <= {0, 0.1, 0.2, 0.8, 1}:
        wanted["cosine"] = (power(t) - power(1)) / (power(0) - power(1))
    for family, curve in wanted.items():
        for dtype in (torch.float32, torch.float64):
            found = schedule(f"{family}@{start},{end},{tau}")(torch.from_numpy(t).to(dtype))
            np.testing.assert_allclose(found.numpy(), np.clip(curve, 1e-9, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "first", "last"), [("f", 1, 100), ("T", 100, 1)])
def test_the_log_schedule_falls_fast_first_and_reversed_fast_last(name, first, last):
    t = np.linspace(0, 0.999, 100)
    place = first * (1 - t) + last * t
    wanted = np.log(last / place) / np.log(last / first)
    found = schedule(f"log@1,100,{name}")(torch.from_numpy(t))
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)
    assert (found[50] < 0.5) == (name == "f")


@pytest.mark.parametrize("name", NAMES)
def test_signal_only_falls_and_never_quite_to_nothing(name):
    gamma = schedule(name)(torch.linspace(0, 1, 4097, dtype=torch.float64))
    assert (gamma.diff() < 0).all()
    assert gamma[0] == pytest.approx(1, abs=1e-6)
    assert 1e-9 <= gamma[-1] < 1e-6
    single = schedule(name)(torch.linspace(0, 1, 4097))
    assert single.dtype == torch.float32
    assert (single.diff() <= 1e-6).all()
    assert single.min() >= 0.9e-9
    assert single.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_time_gives_the_same_alone_and_in_a_batch(name):
    curve = schedule(name)
    times = torch.rand(3, 1, 1, 2, generator=torch.Generator().manual_seed(0)).double()
    batched = curve(times)
    assert batched.shape == times.shape
    alone = curve(times[1, 0, 0, 1])
    assert alone.shape == ()
    torch.testing.assert_close(alone, batched[1, 0, 0, 1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_schedules_travel_to_other_processes(name):
    times = torch.linspace(0, 1, 5)
    assert torch.equal(pickle.loads(pickle.dumps(schedule(name)))(times), schedule(name)(times))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cosin", "did you mean 'cosine'?"),
        ("cosin@0,1,1", "did you mean 'cosine@s,e,tau'?"),
        ("cosine@", "did you mean 'cosine@s,e,tau'?"),
        ("linear", "did you mean 'simple_linear'?"),
        ("simple_linear@1", "did you mean 'simple_linear'?"),
        ("simple_linear@1,2,3", "did you mean 'simple_linear'?"),
        ("sigmoid", "did you mean 'sigmoid@s,e,tau'?"),
        ("sigmoid@-3,3", "did you mean 'sigmoid@s,e,tau'?"),
        ("sigmoid@-3,3,1,1", "did you mean 'sigmoid@s,e,tau'?"),
        ("", "known: cosine; cosine@s,e,tau; "),
        ("ddpm", "known: cosine; cosine@s,e,tau; "),
        ("sigmoid@a,b,c", "could not convert string to float: 'a'"),
        ("sigmoid@-3,,1", "could not convert string to float: ''"),
        ("log@1,100,yes", "r is 'yes': it must be t or f"),
        ("log@0,1,f", "choose other numbers for 'log@s,e,r'"),
        ("sigmoid@3,3,1", "choose other numbers for 'sigmoid@s,e,tau'"),
        ("sigmoid@-3,3,0", "choose other numbers for 'sigmoid@s,e,tau'"),
        ("sigmoid@-3,nan,1", "choose other numbers for 'sigmoid@s,e,tau'"),
        ("cosine@0,2,1", "choose other numbers for 'cosine@s,e,tau'"),
    ],
)
def test_a_schedule_with_a_typo_is_one_clear_line(name, hint):
    with pytest.raises(ValueError, match="schedule") as failure:
        schedule(name)
    message = str(failure.value)
    assert f"schedule {name!r} " in message
    assert hint in message
    assert "\n" not in message


def test_every_schedule_is_named_when_one_is_unknown():
    with pytest.raises(ValueError, match="unknown") as failure:
        schedule("quadratic")
    assert all(form in str(failure.value) for form in SCHEDULES)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("gamma", [1e-9, 0.03, 0.5, 0.97, 1 - 1e-9])
def test_a_perfect_prediction_tells_picture_and_noise_apart(kind, gamma):
    clean, noise = pictures()
    share = torch.tensor(gamma, dtype=torch.float64)
    noisy = noised(clean, noise, share)
    found = estimate(PREDICTIONS[kind].target(clean, noise, share), noisy, share, kind=kind)
    torch.testing.assert_close(found.clean, clean, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.noise, noise, rtol=0, atol=1e-10)


def test_noise_follows_from_the_picture_and_the_picture_from_the_noise():
    clean, noisy = pictures()
    gamma = torch.tensor(0.3, dtype=torch.float64)
    noise = noise_from_clean(clean, noisy, gamma)
    torch.testing.assert_close(clean_from_noise(noise, noisy, gamma), clean)
    np.testing.assert_allclose(noised(clean, noise, gamma).numpy(), noisy.numpy())


def test_the_velocity_is_how_fast_a_picture_turns_into_noise():
    clean, noise = pictures()
    angle = torch.tensor(0.4, dtype=torch.float64)

    def turned(by):
        return torch.cos(by) * clean + torch.sin(by) * noise

    rate = (turned(angle + 1e-6) - turned(angle - 1e-6)) / 2e-6
    found = velocity(clean, noise, angle.cos().square())
    torch.testing.assert_close(found, rate, rtol=0, atol=1e-8)


def test_every_image_may_have_its_own_noise_level():
    clean, noise = pictures()
    gamma = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)[:, None, None]
    whole = noised(clean, noise, gamma)
    for image in range(5):
        share = gamma[image, 0, 0]
        torch.testing.assert_close(whole[image], noised(clean[image], noise[image], share))
    found = estimate(velocity(clean, noise, gamma), whole, gamma, kind="v")
    torch.testing.assert_close(found.clean, clean)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_clipped_picture_leaves_the_rest_to_the_noise(kind):
    clean, noise = pictures()
    gamma = torch.tensor(0.4, dtype=torch.float64)
    noisy = noised(clean, noise, gamma)
    prediction = PREDICTIONS[kind].target(clean, noise, gamma)
    found = estimate(prediction, noisy, gamma, kind=kind, limit=0.5)
    np.testing.assert_allclose(found.clean.numpy(), np.clip(clean.numpy(), -0.5, 0.5), atol=1e-12)
    rest = (noisy.numpy() - 0.4**0.5 * found.clean.numpy()) / 0.6**0.5
    np.testing.assert_allclose(found.noise.numpy(), rest, atol=1e-12)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_picture_without_noise_gives_finite_numbers(kind):
    clean, noise = pictures()
    found = estimate(noise, clean, torch.tensor(1.0, dtype=torch.float64), kind=kind, limit=1.0)
    assert found.clean.isfinite().all()
    assert found.noise.isfinite().all()


@pytest.mark.parametrize("name", ["cosine", "sigmoid@-3,3,0.9", "log@1,1e-3,t"])
def test_a_schedule_is_checked_also_where_a_model_is_built_without_memory(name):
    with torch.device("meta"):
        curve = schedule(name)
    t = torch.tensor([0.25, 0.75])
    assert torch.equal(curve(t), schedule(name)(t))
