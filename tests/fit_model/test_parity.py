"""Golden files decide by themselves whether this code agrees with the official one."""

import numpy as np
import pytest

from fit_model import parity
from tests.fit_model import golden_files, numpy_fit, numpy_sampling
from tests.fit_model.golden_files import DECODER, DENOISER, ENCODER, SAMPLER


@pytest.mark.parametrize(
    ("name", "tolerance", "outputs"),
    [
        ("encoder", 1e-5, ["x", "latents"]),
        ("denoiser", 1e-5, ["x", "latents"]),
        ("autoregressive", 1e-5, ["logits"]),
        ("sampler_ddim", 1e-4, ["samples"]),
        ("sampler_ddpm", 1e-4, ["samples"]),
        ("schedules", 1e-6, ["cosine", "cosine@0.2,1,1", "sigmoid@-3,3,0.9", "simple_linear"]),
        ("token_order", 0.0, ["group_tokens", "ar_input_snake", "ar_target_raster"]),
    ],
)
def test_golden_files_are_met_far_within_the_tolerance(shared, capsys, name, tolerance, outputs):
    path = shared / f"golden/{name}.npz"
    assert parity.main([str(path), "--tolerance", str(tolerance)]) == 0
    printed = capsys.readouterr().out
    assert all(f"{output} " in printed for output in outputs)
    assert len(parity.read(path).outputs) == printed.count(" ok\n")


@pytest.mark.parametrize(
    "name", ["encoder", "denoiser", "autoregressive", "sampler_ddim", "sampler_ddpm"]
)
def test_the_numpy_reference_meets_the_golden_files(shared, name):
    golden = parity.read(shared / f"golden/{name}.npz")
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    found = {
        "encoder": lambda: numpy_fit.encode(config, weights, inputs["x"]),
        "denoiser": lambda: numpy_fit.denoise(
            config, weights, inputs["x"], inputs["time"], inputs["cond"], inputs["latents_prev"]
        ),
        "autoregressive": lambda: numpy_fit.decode(config, weights, inputs["tokens"]),
        "sampler": lambda: numpy_sampling.draw_samples(
            config, weights, inputs["noises"], inputs["labels"]
        ),
    }[config["kind"]]()
    # ddpm's first step subtracts what is nearly equal, which the official float32 feels
    atol = 5e-4 if config["kind"] == "sampler" else 1e-4
    for output, wanted in golden.outputs.items():
        np.testing.assert_allclose(found[output], wanted, rtol=0, atol=atol)


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
        {"seed": 3, "drop_att": 0.0, "comment": "settings that only describe the file"},
    ],
    ids=str,
)
def test_other_encoders_meet_numpy(tmp_path, changes):
    path = golden_files.encoder(tmp_path / "golden.npz", ENCODER | changes)
    assert parity.main([str(path), "--tolerance", "5e-5"]) == 0


def test_the_group_token_comes_from_the_inputs(tmp_path):
    path = golden_files.encoder(tmp_path / "golden.npz", ENCODER, identities=4)
    assert parity.differences(parity.read(path)).keys() == {"x", "latents"}
    assert parity.main([str(path), "--tolerance", "2e-5"]) == 0


@pytest.mark.parametrize(
    ("changes", "inputs"),
    [
        ({}, {}),
        ({"self_cond": "none"}, {"classes": None}),
        ({"self_cond": "latent"}, {}),
        ({"self_cond": "latent"}, {"classes": None}),
        ({"self_cond": "latent"}, {"before": False}),
        ({"xattn_with_mlp": True, "self_cond": "latent", "mlp_ratio": 2}, {}),
        ({"xattn_enc_ln": False}, {}),
        ({"x_self_attention": False}, {}),
        ({"x_self_attention": False, "xattn_with_mlp": True, "xattn_enc_ln": False}, {}),
        ({"x_pos_encoding": "sin_cos", "latent_pos_encoding": "sin_cos"}, {}),
        ({"layers": "(0)2(1)"}, {}),
        ({"layers": "(2)"}, {}),
        ({"layers": "(1)2"}, {"classes": 1}),
        ({"layers": "(0)1(0)1(1)", "mlp_ratio": 3, "drop_units": 0.1, "drop_path": 0.1}, {}),
        ({"num_groups": 1, "x_dim": 8, "latent_dim": 24, "latent_num_heads": 6}, {}),
        ({"mask": "causal"}, {}),
        ({"x_dim": 20, "x_num_heads": 5, "latent_dim": 16, "latent_num_heads": 2}, {}),
    ],
    ids=str,
)
def test_other_denoisers_meet_numpy(tmp_path, changes, inputs):
    path = golden_files.denoiser(tmp_path / "golden.npz", DENOISER | changes, **inputs)
    assert parity.main([str(path), "--tolerance", "1e-4"]) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shared_embedding": False},
        {"output_bias": False},
        {"shared_embedding": False, "output_bias": False, "mlp_ratio": 2},
        {"layers": "(2)"},
        {"layers": "(0)2(1)"},
        {"layers": "(1)1(0)2(0)1(2)"},
        {"layers": "(0)1(0)1(0)"},
        {"x_pos_encoding": "sin_cos", "latent_pos_encoding": "sin_cos"},
        {"num_groups": 1},
        {"num_groups": 12, "latents_per_group": 1, "latent_dim": 24, "latent_num_heads": 6},
        {"vocab_size": 256, "x_dim": 20, "x_num_heads": 5},
    ],
    ids=str,
)
def test_other_autoregressive_decoders_meet_numpy(tmp_path, changes):
    path = golden_files.decoder(tmp_path / "golden.npz", DECODER | changes)
    assert parity.main([str(path), "--tolerance", "5e-5"]) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampler": "ddpm"},
        {"sampler": "ddpm@small", "schedule": "cosine", "guidance": 0.5},
        {"guidance": 2.0, "pred_type": "v"},
        {"guidance": 2.0, "self_cond": "none", "pred_type": "x"},
        {"td": 1.0, "sampler": "ddim", "pred_type": "x", "b_scale": 0.5},
        {"td": 0.5, "sampler": "ddpm", "pred_type": "v", "iterations": 6},
        {"schedule": "cosine@0.2,1,1", "b_scale": 0.1, "normalize_noisy_input": True},
        {"schedule": "sigmoid@-3,3,1.1", "pred_type": "v", "normalize_noisy_input": True},
        {"iterations": 1, "xattn_with_mlp": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [5, None])
def test_other_samplers_meet_numpy(tmp_path, changes, classes):
    if classes is None and changes.get("guidance"):
        changes = changes | {"guidance": 0.0}
    config, path = SAMPLER | changes, tmp_path / "golden.npz"
    # ddpm's first step subtracts what is nearly equal: float32 would show its own rounding alone
    dtype = np.float32 if config["sampler"] == "ddim" else np.float64
    golden_files.sampler(path, config, classes=classes, dtype=dtype)
    assert parity.main([str(path), "--tolerance", "2e-4"]) == 0
    assert np.abs(parity.read(path).outputs["samples"]).max() > 0.05


WRITERS = {
    "encoder": (golden_files.encoder, ENCODER, "latents"),
    "denoiser": (golden_files.denoiser, DENOISER, "x"),
    "autoregressive": (golden_files.decoder, DECODER, "logits"),
    "sampler": (golden_files.sampler, SAMPLER, "samples"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_difference_beyond_the_tolerance_exits_1(tmp_path, capsys, kind):
    writer, config, output = WRITERS[kind]
    path = writer(tmp_path / "golden.npz", config)
    golden_files.edit(path, change={f"outputs/{output}": 5e-3})
    assert parity.main([str(path)]) == 1
    assert "TOO FAR" in capsys.readouterr().out


@pytest.mark.parametrize("output", ["ar_input_snake", "ar_target_raster", "group_tokens"])
def test_a_token_in_another_place_exits_1(shared, tmp_path, output):
    arrays = dict(np.load(shared / "golden/token_order.npz"))
    arrays[f"outputs/{output}"] = np.roll(arrays[f"outputs/{output}"], 1, -1)
    np.savez(tmp_path / "golden.npz", **arrays)
    assert parity.main([str(tmp_path / "golden.npz")]) == 1


@pytest.mark.parametrize("kind", WRITERS)
def test_a_missing_variable_exits_2(tmp_path, capsys, kind):
    writer, config, _ = WRITERS[kind]
    path = writer(tmp_path / "golden.npz", config)
    missing = "fit/l2x_cross_attn/cross_mha/query/kernel"
    golden_files.edit(path, drop=[f"weights/{missing}"])
    assert parity.main([str(path)]) == 2
    assert "query/kernel is missing" in capsys.readouterr().err


REFUSALS = [
    ("encoder", {"kind": "telepathy"}, (), "telepathy"),
    ("encoder", {"mask": "spiral"}, (), "spiral"),
    ("encoder", {"x_size": 37}, (), "divisible"),
    ("encoder", {"layers": "(1)2(1)2"}, (), "weights"),
    ("encoder", {"layers": "(1)2(0)1"}, (), "x_network_1"),
    ("encoder", {"latents_per_group": 2}, (), "latent_position.table"),
    ("denoiser", {"self_cond": "latent"}, (), "latent_prev_proj/ffn/ln/gamma is missing"),
    ("denoiser", {"self_cond": "pixel"}, (), "self_cond is 'pixel'"),
    ("denoiser", {"xattn_with_mlp": True}, (), "mlp/ffn"),
    ("denoiser", {"xattn_enc_ln": False}, (), "enc_ln"),
    ("denoiser", {"x_self_attention": False}, (), "nothing here takes x_network"),
    ("denoiser", {}, ["inputs/time"], "time is missing"),
    ("denoiser", {}, ["inputs/cond"], "nothing here takes cond_proj"),
    ("autoregressive", {"shared_embedding": False}, (), "inp_token_embedding is missing"),
    ("autoregressive", {"output_bias": False}, (), "nothing here takes outp_bias"),
    ("autoregressive", {"vocab_size": 12}, (), "embed.table"),
    ("sampler", {"schedule": "cosin"}, (), "did you mean 'cosine"),
    ("sampler", {"sampler": "telepathy"}, (), "telepathy"),
    ("sampler", {"pred_type": "y"}, (), "pred_type is 'y'"),
    ("sampler", {"sampler": "ddpm", "iterations": 9}, (), "5 noises are too few"),
]


@pytest.mark.parametrize(("kind", "config", "drop", "said"), REFUSALS)
def test_what_cannot_be_compared_exits_2_with_one_line(tmp_path, capsys, kind, config, drop, said):
    writer, base, _ = WRITERS[kind]
    path = golden_files.edit(writer(tmp_path / "golden.npz", base), config=config, drop=drop)
    assert parity.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "setting"),
    [("denoiser", "out_dim"), ("denoiser", "layers"), ("autoregressive", "vocab_size"),
     ("sampler_ddim", "iterations"), ("sampler_ddpm", "schedule"), ("token_order", "ar_patch_px")],
)  # fmt: skip
def test_a_missing_setting_exits_2_with_its_name(shared, tmp_path, capsys, name, setting):
    golden = parity.read(shared / f"golden/{name}.npz")
    parts = {"weights": golden.weights, "inputs": golden.inputs, "outputs": golden.outputs}
    config = {key: value for key, value in golden.config.items() if key != setting}
    path = golden_files.write(tmp_path / "golden.npz", parts, config)
    assert parity.main([str(path)]) == 2
    assert f"the setting '{setting}' is missing" in capsys.readouterr().err


def test_inputs_that_no_encoder_takes_exit_2(tmp_path, capsys):
    path = golden_files.encoder(tmp_path / "golden.npz", ENCODER)
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
