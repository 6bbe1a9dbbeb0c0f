"""Rotary codes in local layers: what they see, what learns, and where they are refused."""

import json
import math

import pytest
import torch

from fit_model import weights
from fit_model.attention.place import Place
from fit_model.block import local_layer
from fit_model.flops import forward_macs, num_parameters
from fit_model.layers import FeedForwardLayer
from fit_model.models import build, config_from_dict, config_to_dict
from fit_model.optimize import layer_groups, parameter_groups
from fit_model.reach import Reach
from tests.fit_model.examples import image, model_config, randomize, trunk_config
from tests.fit_model.generators import batch_of, generator_config, seeds_of, targets_of
from tests.fit_model.test_causality import STRICT, dependence
from tests.fit_model.test_causality import decoder as causal_decoder
from tests.fit_model.test_decoding import decoder, require_same
from tests.fit_model.test_parameters import count

CODES = ["rotary_1d", "rotary_axial@theta=50", "rotary_mixed"]
TURNED = ["softmax", "performer@features=5", "linformer@rank=3", "nystromformer@landmarks=2"]
SIDE = 4


def trunk(code, **changes):
    return trunk_config(**{"width": 16, "local_rotary": code} | changes)


def layer_of(code):
    config = trunk(code)
    place = Place(num_tokens=SIDE * SIDE, grid=(SIDE, SIDE))
    return randomize(local_layer(config, config.blocks[0], reach=Reach(local=place))).double()


def put(content, *, row, column):
    """Four tokens as a square of an else unseen grid; where they are."""
    numbers = torch.tensor([SIDE * (row + r) + column + c for r in (0, 1) for c in (0, 1)])
    grid = torch.randn(1, SIDE * SIDE, 16, dtype=torch.float64)
    grid[:, numbers] = content
    seen = torch.zeros(SIDE * SIDE, dtype=torch.bool)
    seen[numbers] = True
    return grid, seen[None, None, None], numbers


@pytest.mark.parametrize("code", CODES)
@torch.no_grad()
def test_a_local_layer_knows_how_patches_lie_to_each_other_and_not_where_all_of_them_lie(code):
    layer = layer_of(code)
    content = torch.randn(1, 4, 16, dtype=torch.float64)
    found = []
    for row, column in ((0, 0), (2, 1), (1, 2)):
        grid, seen, numbers = put(content, row=row, column=column)
        found.append(layer(grid, seen)[:, numbers])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[2], found[0], rtol=1e-10, atol=1e-10)
    order = torch.tensor([1, 0, 2, 3])
    grid, seen, numbers = put(content[:, order], row=0, column=0)
    assert not torch.allclose(layer(grid, seen)[:, numbers][:, order], found[0], atol=1e-3)


@torch.no_grad()
def test_scores_are_those_of_queries_and_keys_turned_as_complex_numbers():
    heads, rotary = layer_of("rotary_1d").attention, "rotary_1d"
    assert heads.attend.rotary.kind == rotary
    x = torch.randn(1, 3, 16, dtype=torch.float64)
    query = heads.query(x).unflatten(-1, (2, 8)).transpose(1, 2)
    key, value = heads.keys_and_values(x)
    frequency = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angle = torch.arange(3, dtype=torch.float64)[:, None] * frequency
    turn = torch.polar(torch.ones_like(angle), angle)
    queries, keys = (
        torch.view_as_complex(each.unflatten(-1, (4, 2)).contiguous()) * turn
        for each in (query, key)
    )
    scores = torch.einsum("bhqd,bhkd->bhqk", queries, keys.conj()).real / math.sqrt(8)
    wanted = heads.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(heads(x), wanted, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_token_that_names_a_group_stays_unturned():
    def angles(**face):
        model = build(model_config(trunk=trunk("rotary_axial"), **face))
        rotary = model.encoder.trunk.blocks[0].local.layers[0].attention.attend.rotary
        tokens = model.config.num_tokens + (face != {})
        return rotary.angles(tokens, device=torch.device("cpu"))

    named = angles(group_token="one_hot", num_groups=4)
    assert torch.equal(named[:, 1:], angles())
    assert not named[:, 0].any()


@pytest.mark.parametrize("operator", TURNED)
@pytest.mark.parametrize("code", CODES)
def test_an_encoder_learns_with_every_code_and_every_operator_that_takes_one(code, operator):
    config = model_config(trunk=trunk(code, local_operator=operator))
    model = randomize(build(config))
    assert num_parameters(config) == count(model)
    plain = model_config(trunk=trunk("none", local_operator=operator))
    assert forward_macs(config, [4]) == forward_macs(plain, [4])
    model.losses(image(2, 2), torch.tensor([1]), seeds=seeds_of(1)).sum().backward()
    learned = [each for name, each in model.named_parameters() if name.endswith("frequencies")]
    assert len(learned) == (2 if code == "rotary_mixed" else 0)
    assert all(each.grad.abs().max() > 1e-6 for each in learned)


@pytest.mark.parametrize("grouped", [parameter_groups, layer_groups])
def test_learned_frequencies_see_no_weight_decay(grouped):
    model = build(model_config(trunk=trunk("rotary_mixed")))
    names = {id(each): name for name, each in model.named_parameters()}
    decays = {
        names[id(each)]: group["weight_decay"]
        for group in grouped(model, weight_decay=0.1)
        for each in group["params"]
    }
    frequencies = [value for name, value in decays.items() if name.endswith("frequencies")]
    assert frequencies == [0.0, 0.0]


@pytest.mark.parametrize("code", CODES)
def test_a_diffusion_model_learns_with_every_code(code):
    config = generator_config("diffusion", trunk=trunk(code, layers="(1)1(1)"))
    model = randomize(build(config))
    losses = model.losses(batch_of(), targets_of(model, 4), seeds=seeds_of(4))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert num_parameters(config) == count(model)


def test_turned_queries_and_keys_leave_what_a_sub_pixel_depends_on():
    model = randomize(causal_decoder(local_rotary="rotary_1d")).double()
    assert torch.equal(dependence(model, shift=True), STRICT)


@pytest.mark.parametrize("operator", ["softmax", "softmax_reference", "performer@features=5"])
def test_caches_change_no_level_with_a_rotary_code(operator):
    require_same(decoder(local_operator=operator, local_rotary="rotary_1d"))


@pytest.mark.parametrize("code", CODES)
def test_a_model_with_a_rotary_code_survives_json_saving_and_recomputing(code, tmp_path):
    config = model_config(trunk=trunk(code))
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    model = randomize(build(config)).eval()
    weights.save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(weights.load(tmp_path)(image(2, 2)), model(image(2, 2)))
    again = build(model_config(trunk=trunk(code, checkpointing="layer")))
    again.load_state_dict(model.state_dict())
    for each in (model, again):
        each.losses(image(2, 2), torch.tensor([1]), seeds=seeds_of(1)).sum().backward()
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, mine.grad)


def test_layers_without_attention_have_nothing_to_turn():
    config = trunk_config(local_mixing="none")
    assert isinstance(local_layer(config, config.blocks[0], reach=Reach()), FeedForwardLayer)
    with pytest.raises(ValueError, match="local_rotary 'rotary_1d' has nothing to turn"):
        trunk("rotary_1d", local_mixing="none")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: trunk("rotary_2d"), "local_rotary is 'rotary_2d': did you mean 'rotary_1d'"),
        (lambda: trunk("rotary_1d@theta=0.5"), "local_rotary is 'rotary_1d@theta=0.5': theta is"),
        (lambda: trunk("rotary_1d", local_operator="tssa"), "local_operator 'tssa' has no queries"),
        (
            lambda: trunk("rotary_1d", local_operator=("softmax", "xca")),
            "local_operator 'xca' has no queries and keys that a rotary code could turn: choose",
        ),
        (
            lambda: trunk_config(local_rotary="rotary_axial"),
            "local_rotary turns heads whose width is a multiple of 4, not a width of 12 in 2 heads",
        ),
        (
            lambda: generator_config("autoregressive", trunk=trunk("rotary_mixed", layers="(1)")),
            "trunk.local_rotary 'rotary_mixed' turns by rows and columns, but .*'rotary_1d'",
        ),
    ],
)
def test_a_code_that_cannot_be_is_refused_by_name(make, says):
    with pytest.raises(ValueError, match=says):
        make()
