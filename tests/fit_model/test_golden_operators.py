"""Golden files of operators count every gradient, in other shapes and precisions too."""

import json

import numpy as np
import pytest
import torch

from fit_model import parity
from tests.fit_model.attention import test_bixt, test_fnet, test_tssa, test_xca
from tests.fit_model.golden_operator_files import named, random, write


def linear(name, outputs, inputs, *, bias=True):
    weights = {f"{name}.weight": random(outputs, inputs, seed=len(name))}
    return weights | ({f"{name}.bias": random(outputs, seed=9)} if bias else {})


def attention(path, operator, loop, *, heads, extra, qkv=1, bias=True, tokens=3, **config):
    """A file of a mixer with one fused projection, four channels wide."""
    weights = linear("qkv", 4 * qkv, 4, bias=bias) | linear("out", 4, 4) | extra
    return write(
        path,
        config={"operator": operator, "dim": 4, "heads": heads} | config,
        weights=weights,
        inputs={"x": random(2, tokens, 4, seed=3)},
        outputs_of=lambda weights, inputs: {"y": loop(weights, inputs["x"])},
    )


def tssa(path, *, heads, causal=False, dtype="float64", bias=True):
    def loop(weights, x):
        model = named(weights)
        model.heads = heads
        return test_tssa.loop(model, x, None)

    extra = {"temperature": random(heads, 1, seed=4)}
    if causal:
        extra["score_bias"] = random(heads, 5, 1, seed=5)
    name = "tssa_causal" if causal else "tssa"
    more = {"causal": causal, "dtype": dtype}
    return attention(path, name, loop, heads=heads, extra=extra, bias=bias, **more)


def xca(path, *, heads, bias=True):
    def loop(weights, x):
        model = named(weights)
        model.heads = heads
        return test_xca.loop(model, x, None)

    extra = {"temperature": random(heads, 1, 1, seed=4)}
    return attention(path, "xca", loop, heads=heads, extra=extra, qkv=3, bias=bias)


def fnet(path):
    return write(
        path,
        config={"operator": "fnet", "dim": 5},
        weights={},
        inputs={"x": random(1, 4, 5)},
        outputs_of=lambda weights, inputs: {"y": test_fnet.loop(inputs["x"], None)},
    )


def bixt(path, *, widths, heads, bias=True):
    def outputs_of(weights, inputs):
        found = test_bixt.loop(named(weights), inputs["x"], inputs["latents"], None, heads)
        return dict(zip(("y", "latents"), found, strict=True))

    inner = min(widths) // heads * heads
    weights = {}
    for side, width in zip(("tokens", "latents"), widths, strict=True):
        for name in ("r", "v"):
            weights |= linear(f"{side}.{name}", inner, width, bias=bias)
        weights |= linear(f"{side}.out", width, inner, bias=bias)
    return write(
        path,
        config={"operator": "bixt", "dim": widths[0], "heads": heads, "bias": bias},
        weights=weights,
        inputs={"x": random(1, 3, widths[0]), "latents": random(1, 2, widths[1], seed=2)},
        outputs_of=outputs_of,
    )


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        (tssa, {"heads": 1}),
        (tssa, {"heads": 2, "bias": False}),
        (tssa, {"heads": 2, "dtype": "float32"}),
        (tssa, {"heads": 2, "causal": True}),
        (tssa, {"heads": 4, "causal": True, "bias": False}),
        (xca, {"heads": 1}),
        (xca, {"heads": 2, "bias": False}),
        (fnet, {}),
        (bixt, {"widths": (4, 4), "heads": 2, "bias": False}),
        (bixt, {"widths": (3, 5), "heads": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_files_in_other_shapes_are_met_with_every_gradient(tmp_path, capsys, file, settings):
    path = file(tmp_path / "golden.npz", **settings)
    assert parity.main([str(path)]) == 0
    golden = parity.read(path)
    counted = len(golden.outputs) + len(golden.gradients)
    assert capsys.readouterr().out.count(" ok\n") == counted
    inputs = [name for name in golden.inputs if not name.startswith("cotangent")]
    assert len(golden.gradients) == len(inputs) + len(golden.weights)


def changed(path, change):
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)
    return [str(path)]


@pytest.mark.parametrize("name", ["grads/x", "weight_grads/out.bias", "weight_grads/temperature"])
def test_a_gradient_that_is_off_or_no_number_is_too_far(tmp_path, capsys, name):
    path = tssa(tmp_path / "golden.npz", heads=2)

    def push(arrays):
        arrays[name].flat[0] += 3e-9 * np.abs(arrays[name]).max()

    def spoil(arrays):
        arrays[name].flat[0] = np.nan

    for change in (push, spoil):
        assert parity.main(changed(path, change)) == 1
        assert f"{name} " in capsys.readouterr().out
    assert not np.isfinite(parity.differences(parity.read(path))[name])


def test_files_in_float32_may_be_off_by_two_in_a_hundred_thousand(tmp_path):
    path = tssa(tmp_path / "golden.npz", heads=2, dtype="float32")
    for share, wanted in [(1e-5, 0), (2e-5, 1)]:

        def push(arrays, share=share):
            arrays["outputs/y"] += np.float32(share * np.abs(arrays["outputs/y"]).max())

        assert parity.main(changed(path, push)) == wanted


def test_a_gradient_of_nothing_is_measured_by_the_others(tmp_path):
    path = tssa(tmp_path / "golden.npz", heads=1)  # one head belongs to itself at any temperature
    name = "weight_grads/temperature"
    arguments = changed(path, lambda arrays: arrays.update({name: np.full((1, 1), 1e-14)}))
    assert parity.main(arguments) == 0
    arguments = changed(path, lambda arrays: arrays.update({name: np.full((1, 1), 1e-3)}))
    assert parity.main(arguments) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(config=json.dumps({"operator": "tsa"})), "operator 'tsa' cannot be"),
        (
            lambda a: a.pop("weights/out.weight"),
            "out.weight is missing",
        ),
        (lambda a: a.update({"weights/more": np.zeros(3)}), "more has no place in Tssa"),
        (
            lambda a: a.update({"weights/temperature": np.zeros((3, 1))}),
            r"is \(3, 1\), not \(2, 1\)",
        ),
        (lambda a: a.update({"grads/z": np.zeros(3)}), "'grads/z' of shape .* is not computed"),
        (lambda a: a.update({"outputs/y": np.zeros((2, 3))}), "'y' of shape .* is not computed"),
        (lambda a: a.pop("outputs/y"), "holds no outputs"),
        (lambda a: a.pop("inputs/x"), "x is missing"),
    ],
)
def test_a_file_that_cannot_be_compared_says_why(tmp_path, capsys, change, message):
    path = tssa(tmp_path / "golden.npz", heads=2)
    assert parity.main(changed(path, change)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        parity.differences(parity.read(path))
    assert torch.is_grad_enabled()
