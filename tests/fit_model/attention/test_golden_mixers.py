"""Golden files of other shapes and settings, written from the loops, are met; strange ones not."""

import json

import numpy as np
import pytest
import torch

from fit_model import parity
from tests.fit_model.attention import test_linformer, test_nystromformer, test_performer
from tests.fit_model.attention.mixing import sequences

THEIRS = {
    "query": "q",
    "key": "k",
    "value": "v",
    "shorten_keys": "proj_k",
    "shorten_values": "proj_v",
}
FILES = {
    "performer": ("performer_softmax", {"features": 3, "eps": 0.01}),
    "causal performer": ("performer_softmax", {"features": 9, "eps": 0.1, "causal": True}),
    "linformer": ("linformer", {"k": 3, "share_kv": False, "one_kv_head": False}),
    "linformer, shared": ("linformer", {"k": 9, "share_kv": True, "one_kv_head": False}),
    "linformer, one head": ("linformer", {"k": 2, "share_kv": True, "one_kv_head": True}),
    "nystromformer": ("nystrom", {"landmarks": 2, "iterations": 3, "pinv_init": "per_matrix: own"}),
    "nystromformer, convolved": (
        "nystrom_conv_per_matrix",
        {"landmarks": 8, "iterations": 9, "pinv_init": "per_matrix: own", "conv_kernel": 5},
    ),
}


def model_of(operator, config):
    if operator.startswith("performer"):
        causal = "tokens" if config.get("causal") else "none"
        settings = {name: config[name] for name in ("features", "eps")}
        return test_performer, test_performer.mixer(
            2, width=8, causal=causal, stabiliser="projection", **settings
        )
    if operator == "linformer":
        return test_linformer, test_linformer.mixer(
            2,
            width=8,
            tokens=8,
            rank=config["k"],
            sharing="key_value" if config["share_kv"] else "none",
            key_heads="one" if config["one_kv_head"] else "all",
        )
    settings = {name: config[name] for name in ("landmarks", "iterations")}
    kernel = config.get("conv_kernel")
    return test_nystromformer, test_nystromformer.mixer(2, width=8, conv_kernel=kernel, **settings)


def written(path, operator, config):
    """A file whose numbers are those of the loop, in float64."""
    where, model = model_of(operator, config)
    x = sequences(8, 8, batch=2).requires_grad_()
    y = where.loop(model, x, None)
    cotangent = sequences(8, 8, batch=2, seed=3)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    weights = {}
    for name, value in own.items():
        start, _, rest = name.partition(".")
        theirs = THEIRS.get(start, start)
        weights[f"{theirs}.{rest}" if rest else theirs] = value
    leaves = {"grads/x": x} | {
        f"weight_grads/{name}": value for name, value in weights.items() if value.requires_grad
    }
    gradients = torch.autograd.grad((y * cotangent).sum(), list(leaves.values()))
    arrays = {f"weights/{name}": value for name, value in weights.items()}
    arrays |= {"inputs/x": x, "inputs/cotangent": cotangent, "outputs/y": y}
    arrays |= dict(zip(leaves, gradients, strict=True))
    shape = {"operator": operator, "dtype": "float64", "tokens": 8, "dim": 8, "heads": 2}
    np.savez(
        path,
        config=json.dumps(shape | config),
        **{name: value.detach().numpy() for name, value in arrays.items()},
    )
    return path


@pytest.mark.parametrize(("operator", "config"), FILES.values(), ids=FILES)
def test_files_of_other_shapes_and_settings_are_met(tmp_path, operator, config):
    path = written(tmp_path / "golden.npz", operator, config)
    assert parity.main([str(path)]) == 0
    assert any(name.startswith("weight_grads/") for name in parity.read(path).gradients)


@pytest.mark.parametrize(
    ("operator", "changes", "said"),
    [
        ("nystrom", {"pinv_init": "guess"}, "pinv_init is 'guess'"),
        ("rope_1d", {"first_position": 1}, "first_position is not 0"),
        ("rope_axial_2d", {"grid_width": 5}, "holds 15"),
        ("position_sincos_2d", {"reverse_coord": True}, "reverse_coord is true"),
    ],
)
def test_settings_that_nothing_here_has_exit_2(shared, tmp_path, capsys, operator, changes, said):
    arrays = dict(np.load(shared / f"golden/ops/{operator}.npz"))
    arrays["config"] = np.array(json.dumps(json.loads(str(arrays["config"])) | changes))
    np.savez(tmp_path / "golden.npz", **arrays)
    assert parity.main([str(tmp_path / "golden.npz")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("operator", "changes"),
    [
        ("rope_1d", {"theta": 100.0}),
        ("rope_axial_2d", {"grid_height": 4, "grid_width": 3}),
        ("performer_softmax", {"eps": 0.0}),
        ("nystrom", {"pinv_init": "per_matrix: own"}),
        ("nystrom_per_matrix", {"iterations": 5}),
        ("position_sincos_2d", {"temperature": 100.0}),
        ("position_fourier_2d", {"eps": 1e-3}),
        ("softmax_attention", {"causal": True}),
    ],
)
def test_a_setting_is_read_and_not_guessed_from_the_name(shared, tmp_path, operator, changes):
    arrays = dict(np.load(shared / f"golden/ops/{operator}.npz"))
    arrays["config"] = np.array(json.dumps(json.loads(str(arrays["config"])) | changes))
    np.savez(tmp_path / "golden.npz", **arrays)
    assert parity.main([str(tmp_path / "golden.npz")]) == 1
