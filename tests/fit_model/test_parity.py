"""Golden files decide by themselves whether this code agrees with the official one."""

import json

import numpy as np
import pytest

from fit_model import parity
from tests.fit_model import numpy_fit

BASE = {
    "kind": "encoder",
    "layers": "(1)2(1)1",
    "x_size": 36,
    "num_groups": 4,
    "latents_per_group": 3,
    "x_dim": 16,
    "latent_dim": 12,
    "x_num_heads": 4,
    "latent_num_heads": 3,
}


def write(path, config, *, channels=5, identities=None, change=0.0):
    """A golden file whose outputs come from NumPy."""
    draw = np.random.default_rng(3)
    t, n = config["num_groups"], config["x_size"] // config["num_groups"]
    weights = numpy_fit.random_weights(config, channels=channels, identities=identities, seed=1)
    inputs = {"x": draw.normal(size=(2, t, n, channels)).astype(np.float32)}
    if identities:
        inputs["y"] = np.stack(
            [np.eye(identities, dtype=np.float32)[draw.permutation(t)][:, None] for _ in range(2)]
        )
    outputs = numpy_fit.encode(config, weights, inputs["x"], inputs.get("y"))
    parts = {"weights": weights, "inputs": inputs, "outputs": outputs}
    arrays = {f"{part}/{name}": a for part, named in parts.items() for name, a in named.items()}
    arrays["outputs/latents"] = arrays["outputs/latents"] + change
    np.savez(path, config=json.dumps(config), **arrays)
    return path


def test_the_golden_encoder_is_met_within_a_hundred_thousandth(shared, capsys):
    assert parity.main([str(shared / "golden/encoder.npz"), "--tolerance", "1e-5"]) == 0
    printed = capsys.readouterr().out
    assert "x " in printed
    assert "latents " in printed


def test_the_numpy_reference_meets_the_golden_encoder(shared):
    golden = parity.read(shared / "golden/encoder.npz")
    found = numpy_fit.encode(golden.config, golden.weights, golden.inputs["x"])
    for name, wanted in golden.outputs.items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask": "causal"},
        {"mask": "none", "x_pos_encoding": "sin_cos"},
        {"x_pos_encoding": "sin_cos2d", "latent_pos_encoding": "sin_cos"},
        {"latent_pos_encoding": "sin_cos", "latents_per_group": 1, "mask": "causal"},
        {"x_pos_encoding": "sin_cos", "x_dim": 15, "x_num_heads": 5},
        {"layers": "(0)2"},
        {"layers": "(2)"},
        {"layers": "(0)1(0)1(2)", "mlp_ratio": 2, "drop_units": 0.1, "drop_path": 0.1},
        {"num_groups": 1, "x_dim": 8, "latent_dim": 24, "latent_num_heads": 6},
    ],
    ids=str,
)
def test_other_configurations_meet_numpy(tmp_path, changes):
    path = write(tmp_path / "golden.npz", BASE | changes)
    assert parity.main([str(path), "--tolerance", "5e-5"]) == 0


def test_the_group_token_comes_from_the_inputs(tmp_path):
    path = write(tmp_path / "golden.npz", BASE, identities=4)
    assert parity.differences(parity.read(path)).keys() == {"x", "latents"}
    assert parity.main([str(path), "--tolerance", "2e-5"]) == 0


def test_settings_that_only_describe_the_file_are_no_obstacle(tmp_path):
    path = write(tmp_path / "golden.npz", BASE | {"seed": 3, "drop_att": 0.0, "comment": "hello"})
    assert parity.main([str(path), "--tolerance", "2e-5"]) == 0


def test_a_difference_beyond_the_tolerance_exits_1(tmp_path, capsys):
    path = write(tmp_path / "golden.npz", BASE, change=1e-3)
    assert parity.main([str(path)]) == 1
    assert "TOO FAR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "telepathy"}, "telepathy"),
        ({"mask": "spiral"}, "spiral"),
        ({"x_size": 37}, "divisible"),
        ({"layers": "(1)2(1)2"}, "weights"),
        ({"layers": "(1)2(0)1"}, "x_network_1"),
        ({"latents_per_group": 2}, "latent_position.table"),
    ],
)
def test_what_cannot_be_compared_exits_2_with_one_line(tmp_path, capsys, changes, said):
    path = write(tmp_path / "golden.npz", BASE)
    arrays = dict(np.load(path))
    arrays["config"] = json.dumps(BASE | changes)
    np.savez(path, **arrays)
    assert parity.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_inputs_that_no_encoder_takes_exit_2(tmp_path, capsys):
    path = write(tmp_path / "golden.npz", BASE)
    arrays = dict(np.load(path))
    np.savez(path, **arrays, **{"inputs/time": np.zeros(2), "inputs/cond": np.zeros(2)})
    assert parity.main([str(path)]) == 2
    assert "time, cond" in capsys.readouterr().err


def test_a_file_that_is_no_npz_exits_2(tmp_path, capsys):
    path = tmp_path / "golden.npz"
    path.write_text("hello")
    assert parity.main([str(path), str(tmp_path / "absent.npz")]) == 2
    assert capsys.readouterr().err.count("golden file") == 2


def test_a_file_without_outputs_proves_nothing_and_is_refused(shared, tmp_path, capsys):
    with np.load(shared / "golden" / "encoder.npz") as golden:
        kept = {name: golden[name] for name in golden.files if not name.startswith("outputs/")}
    np.savez(tmp_path / "empty.npz", **kept)
    assert parity.main([str(tmp_path / "empty.npz")]) == 2
    assert "no outputs" in capsys.readouterr().err
