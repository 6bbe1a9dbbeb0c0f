"""Which parameters decay, and how the learning rate goes."""

import math
import re

import pytest
import torch
from torch import nn

from fit_model.models import build
from fit_model.optimize import (
    ParameterGroup,
    layer_groups,
    learning_rate_factor,
    parameter_groups,
)
from tests.fit_model.examples import image, model_config

MODELS = {
    "tables": {"latent_position": "learned", "num_groups": 4},
    "coordinates": {},
}


class Odd(nn.Module):
    """Parameters of every kind of module, and a table that two of them share."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.conv = nn.Conv2d(1, 1, 3)
        self.group_norm = nn.GroupNorm(1, 4)
        self.rms = nn.RMSNorm(4)
        self.out = nn.Linear(4, 5)
        self.out.weight = self.words.weight
        self.output_bias = nn.Parameter(torch.zeros(5))
        self.alone = nn.Parameter(torch.zeros(5))


def names_by_decay(model: nn.Module, groups: list[dict]) -> tuple[set[str], set[str]]:
    """The names of what decays and of what does not, each parameter exactly once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names.pop(id(each)), group) for group in groups for each in group["params"]]
    assert not names
    decaying = {name for name, group in found if group["weight_decay"] == 0.1}
    kept = {name for name, group in found if group["weight_decay"] == 0.0}
    return decaying, kept


GROUPS = pytest.mark.parametrize("grouped", [parameter_groups, layer_groups])


@GROUPS
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_biases_norms_and_gains_do_not_decay_and_all_else_does(grouped, changes):
    model = build(model_config(**changes))
    decaying, kept = names_by_decay(model, grouped(model, weight_decay=0.1))
    assert all(re.search(r"bias$|norm\.weight$|\.gain$", name) for name in kept)
    assert not [name for name in decaying if re.search("bias|norm|gain", name)]
    assert "token_position.table" in {name.removeprefix("encoder.") for name in decaying}
    # vectors shift and scale, and nothing else is a vector
    vectors = {name for name, each in model.named_parameters() if each.dim() == 1}
    assert kept == vectors


@GROUPS
def test_the_rule_holds_for_every_kind_of_module_and_counts_shared_tables_once(grouped):
    model = Odd()
    decaying, kept = names_by_decay(model, grouped(model, weight_decay=0.1))
    assert decaying == {"words.weight", "conv.weight", "alone"}
    assert kept == {
        "conv.bias", "group_norm.weight", "group_norm.bias", "rms.weight", "out.bias",
        "output_bias",
    }  # fmt: skip


def test_a_layer_group_holds_one_parameter_and_adapts_what_decays():
    groups = layer_groups(Odd(), weight_decay=0.1)
    assert all(len(group["params"]) == 1 for group in groups)
    assert all(group["adapted"] == (group["weight_decay"] > 0) for group in groups)
    without_decay = layer_groups(Odd(), weight_decay=0.0)
    assert [group["adapted"] for group in without_decay] == [each["adapted"] for each in groups]


HEAD = ParameterGroup(pattern="head.*", lr_factor=0.1, weight_decay=0.02)
TABLES = ParameterGroup(pattern="*.table", lr_factor=0.0)


@GROUPS
def test_a_group_takes_what_its_pattern_names_and_the_first_that_fits_decides(grouped):
    model = build(model_config())
    norms = ParameterGroup(pattern="*norm.*", lr_factor=3.0)
    made = grouped(model, weight_decay=0.1, groups=(HEAD, norms, TABLES))
    settings = {
        id(parameter): (group["lr_factor"], group["weight_decay"])
        for group in made
        for parameter in group["params"]
    }
    usual = grouped(model, weight_decay=0.1)
    decaying, _ = names_by_decay(model, usual)
    for name, parameter in model.named_parameters():
        decay = 0.1 if name in decaying else 0.0
        wanted = (1.0, decay)
        if name.startswith("head."):
            wanted = (0.1, 0.02 if decay else 0.0)
        elif "norm." in name:
            wanted = (3.0, decay)
        elif name.endswith(".table"):
            wanted = (0.0, decay)
        assert settings.pop(id(parameter)) == wanted
    assert not settings


@GROUPS
def test_one_group_may_hold_everything(grouped):
    everything = ParameterGroup(pattern="*", lr_factor=0.5)
    made = grouped(build(model_config()), weight_decay=0.1, groups=(everything,))
    assert all(group["params"] and group["lr_factor"] == 0.5 for group in made)


@GROUPS
@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ([{"pattern": "haed.*"}], r"as the group 'haed.\*' says; the closest: .*head\."),
        ([{"pattern": "head.*"}, {"pattern": "head.project.*"}], "'head.project.*' are in groups"),
        ([{"pattern": "*.bias", "weight_decay": 0.1}], r"'\*.bias' has weight_decay 0.1, and bia"),
    ],
)
def test_a_group_without_effect_is_refused(grouped, groups, says):
    with pytest.raises(ValueError, match=says):
        grouped(
            build(model_config()),
            weight_decay=0.1,
            groups=[ParameterGroup(**each) for each in groups],
        )


@pytest.mark.parametrize("change", [{"lr_factor": -1.0}, {"weight_decay": -0.1}])
def test_a_group_does_not_unlearn(change):
    with pytest.raises(ValueError, match="they cannot be negative"):
        ParameterGroup(pattern="*", **change)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    factors = [learning_rate_factor(step, warmup_steps=4, total_steps=12) for step in range(14)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[8] == pytest.approx(0.5)
    assert factors[12:] == [0.0, 0.0]
    assert factors[4:] == sorted(factors[4:], reverse=True)


def test_the_cosine_is_that_of_torch():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.1)
    for step in range(10):
        factor = learning_rate_factor(step, warmup_steps=0, total_steps=10, end_factor=0.1)
        assert math.isclose(factor, scheduler.get_last_lr()[0], rel_tol=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("share", "end"), [(0.7, 0.2061), (0.8, 0.0955), (1.0, 0.0), (0.5, 0.5)])
def test_a_share_of_a_cosine_ends_where_the_official_one_does(share, end):
    settings = {"warmup_steps": 10, "total_steps": 1010, "cosine_share": share}
    assert learning_rate_factor(10, **settings) == 1.0
    assert learning_rate_factor(1010, **settings) == pytest.approx(end, abs=5e-5)
    assert learning_rate_factor(5000, **settings) == learning_rate_factor(1010, **settings)
    # its middle is where half the share of a cosine ends
    half = {**settings, "cosine_share": share / 2}
    middle = learning_rate_factor(510, **settings)
    assert middle == pytest.approx(learning_rate_factor(1010, **half))


def test_a_share_of_nothing_keeps_the_rate_after_the_warm_up():
    settings = {"warmup_steps": 2, "total_steps": 6, "cosine_share": 0.0}
    factors = [learning_rate_factor(step, **settings) for step in range(8)]
    assert factors == [0.5, *[1.0] * 7]


def test_a_model_learns_two_images_by_heart():
    torch.manual_seed(0)
    model = build(model_config())
    batches = [image(2, 2, seed=1), image(1, 3, seed=2)]
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = sum(
            model.head.loss(model(batch), torch.tensor([target]))
            for target, batch in enumerate(batches)
        )
        loss.backward()
        optimizer.step()
    assert loss < 0.1
