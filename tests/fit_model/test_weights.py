"""A saved model loads to the same outputs; a damaged or foreign folder is refused."""

import json
import os
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from fit_model import weights
from fit_model.heads import RegressConfig
from fit_model.models import build
from tests.fit_model.examples import image, model_config, randomize
from tests.fit_model.generators import batch_of, generator_config, head, seeds_of, targets_of

TENSOR = "encoder.trunk.blocks.0.read.layer.attention.query.weight"


@pytest.fixture
def folder(tmp_path):
    return weights.save(build(model_config()), tmp_path / "model")


def edit_config(folder, edit):
    declared = json.loads((folder / weights.CONFIG).read_text())
    edit(declared)
    (folder / weights.CONFIG).write_text(json.dumps(declared))


def edit_tensors(folder, edit):
    path = folder / weights.WEIGHTS
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "config",
    [
        model_config(),
        model_config(
            head=RegressConfig(targets=("age",), target_mean=(0.1,), target_std=(1 / 3,)),
            latent_position="learned",
            num_groups=4,
        ),
    ],
    ids=["classify", "regress"],
)
def test_a_loaded_model_gives_the_same_outputs_and_can_be_trained_on(tmp_path, config, dtype):
    model = randomize(build(config)).to(dtype).eval()
    loaded = weights.load(weights.save(model, tmp_path / "new/folder"))
    assert loaded.config == config
    assert torch.equal(loaded(image(2, 2)), model(image(2, 2)))
    loaded(image(2, 2)).sum().backward()
    assert loaded.head.project.weight.grad is not None
    assert sorted(path.name for path in (tmp_path / "new/folder").iterdir()) == [
        weights.CONFIG,
        weights.WEIGHTS,
    ]


def test_saving_again_replaces_the_model(folder):
    model = randomize(build(model_config()), seed=4).eval()
    weights.save(model, folder)
    assert torch.equal(weights.load(folder)(image(1, 1)), model(image(1, 1)))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tensors: tensors.pop(TENSOR), f"{TENSOR} is missing"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "extra is unknown"),
        (lambda tensors: tensors.update({TENSOR: torch.ones(2, 3)}), r"has shape \(2, 3\)"),
        (
            lambda tensors: tensors.update({TENSOR: tensors[TENSOR].to(torch.int32)}),
            "no floating point",
        ),
    ],
)
def test_tensors_that_are_not_those_of_the_configuration_are_refused(folder, edit, said):
    edit_tensors(folder, edit)
    with pytest.raises(ValueError, match=said) as caught:
        weights.load(folder)
    assert weights.WEIGHTS in str(caught.value)


GENERATORS = [
    generator_config("diffusion"),
    generator_config("diffusion", classes=(), self_conditioning="none", schedule="log@1,100,f"),
    generator_config("autoregressive"),
    generator_config(
        "autoregressive",
        embedding="separate",
        output_bias="none",
        num_levels=17,
        makes=head(pixel_low=0.0, pixel_high=250.0),
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", GENERATORS, ids=lambda config: config.face.kind)
def test_a_loaded_generator_gives_the_same_losses_and_can_be_trained_on(tmp_path, config, dtype):
    model = randomize(build(config)).to(dtype).eval()
    loaded = weights.load(weights.save(model, tmp_path / "model"))
    assert loaded.config == config
    assert not loaded.training
    batch, targets, seeds = batch_of(), targets_of(config, 4), seeds_of(4)
    losses = loaded.losses(batch, targets, seeds=seeds)
    assert torch.equal(losses, model.losses(batch, targets, seeds=seeds))
    losses.sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


@pytest.mark.parametrize(
    ("saved", "declared"), [(0, 1), (1, 0), (0, 2), (2, 0), (2, 3), (3, 2)], ids=str
)
def test_the_weights_of_one_generator_are_no_other_generator(tmp_path, saved, declared):
    folder = weights.save(build(GENERATORS[saved]), tmp_path / "model")
    other = weights.save(build(GENERATORS[declared]), tmp_path / "other")
    (folder / weights.CONFIG).write_bytes((other / weights.CONFIG).read_bytes())
    with pytest.raises(ValueError, match=rf"{weights.WEIGHTS}: tensor .* (missing|unknown|shape)"):
        weights.load(folder)


def set_trunk(**changes):
    return lambda declared: declared["model"]["face"]["trunk"].update(changes)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            set_trunk(widht=4),
            "no setting 'face.trunk.widht'; did you mean 'face.trunk.width'",
        ),
        (set_trunk(width=True), "face.trunk.width is True: a whole number is wanted"),
        (set_trunk(width=13), "13 is no multiple of its 2 heads"),
        (set_trunk(layers="(9999)9999"), "declares"),
        (set_trunk(width=10**9), "declares"),
        (lambda declared: declared["model"].pop("head"), "'head' is missing"),
        (lambda declared: declared["model"]["head"].update(kind="dream"), "head.kind is 'dream'"),
        (lambda declared: declared.update(version=99), "version 99"),
        (lambda declared: declared.update(colour="red"), "colour"),
        (lambda declared: declared.update(model=[1]), "table of settings"),
        (
            lambda declared: declared["model"]["input"].update(band_mean=[1.0, 2.0]),
            "different saves",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_refused(folder, edit, said):
    edit_config(folder, edit)
    with pytest.raises(ValueError, match=said) as caught:
        weights.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", [weights.CONFIG, weights.WEIGHTS])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"\xff" * 64),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_bytes(b" " * 2_000_000),
    ],
    ids=["absent", "empty", "cut off", "noise", "nested", "oversize"],
)
def test_damaged_files_are_refused_by_name(folder, name, damage):
    damage(folder / name)
    with pytest.raises(ValueError, match=name):
        weights.load(folder)


def test_a_model_is_whole_or_refused(folder, monkeypatch):
    """The machine stops between the two files of a new model, and of one that is replaced."""

    replace = os.replace

    def replace_weights_alone(draft, target):
        if target.name == "config.json":
            raise OSError("no space left")
        replace(draft, target)

    other = model_config(head=RegressConfig(targets=("x", "y", "z"), target_mean=(0.0,) * 3,
                                            target_std=(1.0,) * 3))  # fmt: skip
    monkeypatch.setattr("os.replace", replace_weights_alone)
    for target in (folder, folder / "fresh"):
        with pytest.raises(OSError, match="no space"):
            weights.save(build(other), target)
        with pytest.raises(ValueError, match=r"different saves|missing"):
            weights.load(target)


def test_whoever_may_read_the_configuration_may_read_the_weights(folder):
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(list(folder.iterdir())) == 2
    assert len(modes) == 1


def test_a_disk_that_takes_no_more_is_told_as_the_system_tells_it(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = weights.load(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    half = len(before["model.safetensors"]) // 2
    assert half > len(before["config.json"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (half, hard))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors"):
            weights.save(model, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
