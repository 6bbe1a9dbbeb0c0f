"""Kills are drawn once: as many as asked for, at different steps, of every kind."""

from hypothesis import given
from hypothesis import strategies as st

from jobs.kill_plan import VICTIMS, plan_kills


@given(
    steps=st.integers(2, 200),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32),
    victims=st.permutations(VICTIMS).flatmap(
        lambda order: st.integers(1, 3).map(lambda count: tuple(order[:count]))
    ),
)
def test_every_kill_has_its_own_step_and_every_victim_its_turn(steps, share, seed, victims):
    kills = 1 + int(share * (steps - 2))
    plan = plan_kills(kills=kills, steps=steps, victims=victims, seed=seed)
    places = [each.step for each in plan]
    assert len(plan) == kills
    assert places == sorted(set(places))
    assert places[0] >= 1
    assert places[-1] < steps
    counts = [sum(each.victim == victim for each in plan) for victim in victims]
    assert sum(counts) == kills
    assert max(counts) - min(counts) <= 1
    assert plan == plan_kills(kills=kills, steps=steps, victims=victims, seed=seed)


def test_ten_kills_hit_training_saving_and_starting_and_never_the_first_start():
    for seed in range(50):
        plan = plan_kills(kills=10, steps=40, victims=VICTIMS, seed=seed)
        moments = [each.moment for each in plan]
        assert moments[0] != "starting"
        assert {"training", "saving", "starting"} == set(moments)
        assert "starting starting" not in " ".join(moments)


def test_another_seed_makes_other_kills():
    one, other = (plan_kills(kills=10, steps=40, victims=VICTIMS, seed=seed) for seed in (0, 1))
    assert one != other
