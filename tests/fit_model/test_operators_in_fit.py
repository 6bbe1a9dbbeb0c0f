"""Every operator as a choice of one line in FIT's local and global layers; what is refused."""

import json
from dataclasses import replace

import pytest
import torch

from fit_model import weights
from fit_model.attention.mixers import CAUSAL_MIXERS, MIXERS
from fit_model.choosing import DecodingConfig
from fit_model.flops import forward_macs, num_parameters
from fit_model.groups import collate
from fit_model.models import build, config_from_dict, config_to_dict
from fit_model.trunk_config import TrunkConfig
from tests.fit_model.examples import image, model_config, randomize, trunk_config
from tests.fit_model.generators import batch_of, generator_config, seeds_of, targets_of
from tests.fit_model.test_causality import EVERY, STRICT, dependence
from tests.fit_model.test_causality import decoder as causal_decoder
from tests.fit_model.test_decoding import decoder, require_same

SHORT = {
    "aft_full": "aft_full@rank=2", "aft_local": "aft_local@window=2,rank=2",
    "aft_conv": "aft_conv@kernel=3,axes=line", "linformer": "linformer@rank=3",
    "nystromformer": "nystromformer@landmarks=2,conv_kernel=3", "performer": "performer@features=5",
}  # fmt: skip
OPERATORS = [SHORT.get(name, name) for name in MIXERS]
GROUPS = 15
"""Of the largest image of the tests: what operators with weights for every place are built for."""


def trunk(stream: str, operator: str, **changes) -> TrunkConfig:
    return trunk_config(**{f"{stream}_operator": operator} | changes)


def fixed(stream: str) -> dict:
    """Latents of images of any size need a longest one for weights of every place."""
    return {"num_groups": GROUPS} if stream == "global" else {}


@pytest.mark.parametrize("stream", ["local", "global"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_encoder_learns_with_every_operator_in_either_stream(operator, stream):
    config = model_config(trunk=trunk(stream, operator), **fixed(stream))
    model = randomize(build(config))
    assert sum(each.numel() for each in model.parameters()) == num_parameters(config)
    assert forward_macs(config, [4]) > 0
    images = [image(2, 2, seed=1), image(3, 5, stored=[0, 3, 11], seed=2), image(1, 1, seed=3)]
    model.losses(collate(images), torch.tensor([0, 1, 2]), seeds=seeds_of(3)).sum().backward()
    mixing = [each.grad for name, each in model.named_parameters() if ".attention." in name]
    assert all(each.isfinite().all() for each in mixing)
    assert all(each.abs().sum() > 0 for each in mixing if each.dim() > 1)


@pytest.mark.parametrize(
    ("operator", "stream", "num_groups"),
    [
        *((each, "local", None) for each in OPERATORS),
        *((each, "global", GROUPS) for each in OPERATORS),
        ("fnet", "global", None),
    ],
)
@torch.no_grad()
def test_no_batch_mate_changes_an_image_with_any_operator(operator, stream, num_groups):
    model = build(model_config(trunk=trunk(stream, operator), num_groups=num_groups))
    model = randomize(model).double().eval()
    images = [image(2, 2, seed=1), image(3, 5, stored=[0, 3, 11], seed=2), image(1, 1, seed=3)]
    together = model(collate(images))
    for number, alone in enumerate(images):
        torch.testing.assert_close(model(alone)[0], together[number], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_diffusion_model_learns_with_every_operator(operator):
    both = trunk_config(layers="(1)2(1)", local_operator=operator, global_operator=operator)
    config = generator_config("diffusion", trunk=both, num_groups=GROUPS)
    model = randomize(build(config))
    assert sum(each.numel() for each in model.parameters()) == num_parameters(config)
    losses = model.losses(batch_of(), targets_of(model, 4), seeds=seeds_of(4))
    losses.sum().backward()
    assert losses.isfinite().all()


@pytest.mark.parametrize("stream", ["local", "global"])
@pytest.mark.parametrize("name", CAUSAL_MIXERS)
def test_a_sub_pixel_depends_on_nothing_behind_it_with_any_causal_operator(name, stream):
    chosen = {f"{stream}_operator": SHORT.get(name, name), "face": {"num_groups": 4}}
    model = randomize(causal_decoder(**chosen)).double()
    found = dependence(model, shift=True)
    if stream == "global":
        assert torch.equal(found, STRICT)
    assert not (found & ~STRICT).any()
    assert found.sum() > EVERY.sum() / 4


@pytest.mark.parametrize("stream", ["local", "global"])
@pytest.mark.parametrize("name", CAUSAL_MIXERS)
def test_caches_change_no_level_with_any_causal_operator(name, stream):
    chosen = {f"{stream}_operator": SHORT.get(name, name), "face": {"num_groups": 4}}
    require_same(decoder(**chosen), sampling=DecodingConfig(guidance=0.5))


@pytest.mark.parametrize("name", CAUSAL_MIXERS)
@torch.no_grad()
def test_latents_that_look_back_are_not_changed_by_batch_mates_with_any_causal_operator(name):
    config = model_config(
        trunk=trunk("global", SHORT.get(name, name)), latent_mask="causal", num_groups=GROUPS
    )
    model = randomize(build(config)).double().eval()
    images = [image(1, 4, seed=1), image(1, 1, seed=2), image(1, 3, seed=3)]
    together = model(collate(images))
    for number, alone in enumerate(images):
        torch.testing.assert_close(model(alone)[0], together[number], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stream", ["local", "global"])
@pytest.mark.parametrize("name", sorted(MIXERS.keys() - set(CAUSAL_MIXERS)))
def test_an_operator_without_a_causal_form_is_refused_by_name(name, stream):
    operator = SHORT.get(name, name)
    said = f"trunk.{stream}_operator '{operator}' has no causal form.*choose one of .*, tssa, aft"
    with pytest.raises(ValueError, match=said):
        generator_config("autoregressive", trunk=trunk(stream, operator, layers="(1)1(1)"))
    if stream == "global":
        with pytest.raises(ValueError, match=said):
            model_config(trunk=trunk(stream, operator), latent_mask="causal")
        with pytest.raises(ValueError, match=said):
            generator_config("diffusion", trunk=trunk(stream, operator), latent_mask="causal")


def test_an_autoregressive_model_of_any_number_of_patches_cannot_learn_a_bias_for_each():
    def config(operator):
        return generator_config("autoregressive", trunk=trunk("global", operator, layers="(1)1(1)"))

    with pytest.raises(ValueError, match=r"num_groups.*or set score_bias to 'none'"):
        num_parameters(config("tssa"))
    free = config("tssa@score_bias=none")
    assert sum(each.numel() for each in build(free).parameters()) == num_parameters(free)


@pytest.mark.parametrize("name", ["linformer", "aft_full", "mlp_mixer"])
def test_weights_for_every_place_need_images_of_a_known_size(name):
    config = model_config(trunk=trunk("global", SHORT.get(name, name)))
    with pytest.raises(ValueError, match=f"{name} has weights for every position"):
        num_parameters(config)


@pytest.mark.parametrize(
    ("stream", "operator", "says"),
    [
        ("local", "aft_conv@heads=5", "trunk.local_operator is 'aft_conv@heads=5': width 12"),
        ("global", "aft_conv", "trunk.global_operator is 'aft_conv': .*or set axes to 'line'"),
        ("global", "fnet@transform=grid", "trunk.global_operator .*set transform to 'sequence'"),
    ],
)
def test_an_operator_that_cannot_stand_in_a_stream_is_refused_with_the_setting(
    stream, operator, says
):
    config = model_config(trunk=trunk(stream, operator))
    for refused in (num_parameters, build):
        with pytest.raises(ValueError, match=says):
            refused(config)


@pytest.mark.parametrize(
    "operator", [SHORT["linformer"], SHORT["aft_full"], SHORT["aft_local"], "mlp_mixer"]
)
def test_images_of_more_groups_than_foreseen_are_refused_with_the_setting(operator):
    model = build(model_config(trunk=trunk("global", operator), num_groups=3))
    with pytest.raises(ValueError, match=r"has weights for 9 tokens and is given 12.*num_groups"):
        model(image(2, 2))


def test_an_operator_of_local_layers_that_do_not_mix_is_refused():
    with pytest.raises(ValueError, match="local_operator 'tssa' has nothing to mix"):
        trunk("local", "tssa", local_mixing="none")


@pytest.mark.parametrize(
    ("operator", "says"),
    [
        ("telepathy", "choose one of softmax_reference, softmax, tssa"),
        ("linforner", "did you mean 'linformer'"),
        ("linformer@rnk=3", "no setting 'rnk'; did you mean 'rank'.*with names of: rank"),
        ("linformer@rank", "'rank' is not of the form NAME=VALUE"),
        ("linformer@rank=many", "rank is 'many': a whole number is wanted"),
        ("linformer@rank=0", "rank"),
        ("softmax@heads=3", "local_operator is 'softmax@heads=3'"),
        ("tssa@kind=xca", "'kind=xca' is not of the form NAME=VALUE"),
        (
            "linformer@rank=3,rank=4",
            "local_operator is 'linformer@rank=3,rank=4': rank stands twice",
        ),
        ("tssa@temperature=nan", "temperature is nan: a finite number is wanted"),
        ("xca@temperature=-inf", "temperature is -inf: a finite number is wanted"),
    ],
)
def test_an_operator_that_cannot_be_read_is_refused_with_what_there_is(operator, says):
    with pytest.raises(ValueError, match=says):
        trunk("local", operator)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_model_of_any_operator_survives_json_and_saving(operator, tmp_path):
    config = model_config(trunk=trunk("local", operator))
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    model = randomize(build(config)).eval()
    weights.save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(weights.load(tmp_path)(image(2, 2)), model(image(2, 2)))


@pytest.mark.parametrize("operator", OPERATORS)
def test_recomputing_layers_changes_no_gradient_with_any_operator(operator):
    found = []
    for checkpointing in ("none", "layer"):
        torch.manual_seed(0)
        both = replace(trunk("local", operator), checkpointing=checkpointing)
        model = randomize(build(model_config(trunk=both))).double()
        model.losses(image(2, 2), torch.tensor([1]), seeds=seeds_of(1)).sum().backward()
        found.append([each.grad for each in model.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-10, atol=1e-12)
