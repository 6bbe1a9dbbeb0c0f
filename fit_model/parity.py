"""Compare this code with numbers of the official one: `python -m fit_model.parity FILE.npz ...`

A golden file holds `config` (JSON, under the official names), `weights/*`, `inputs/*`, `outputs/*`.
Prints the largest difference of every output. Exits 0 when all stay within the tolerance, 1 when
one does not, 2 when a file cannot be compared.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from fit_model.encoder import Encoder, encode_images
from fit_model.official import encoder_config, encoder_weights, fill

TOLERANCE = 2e-4

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One golden file, taken apart."""

    config: Mapping[str, Any]
    weights: Arrays
    inputs: Arrays
    outputs: Arrays


def read(path: Path) -> Golden:
    """The parts of a golden file; ValueError for anything else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        config = json.loads(str(arrays["config"]))
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} is no golden file: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no golden file: its config is no table of settings")

    def under(folder: str) -> Arrays:
        start = f"{folder}/"
        return {name.removeprefix(start): arrays[name] for name in arrays if name.startswith(start)}

    return Golden(
        config=config, weights=under("weights"), inputs=under("inputs"), outputs=under("outputs")
    )


def encode(golden: Golden) -> Arrays:
    """Outputs of an encoder file: data tokens `x` and `latents`."""
    others = [name for name in golden.inputs if name != "x"]
    if "x" not in golden.inputs or len(others) > 1:
        raise ValueError(f"an encoder takes x and names of groups, not {', '.join(golden.inputs)}")
    x, y = golden.inputs["x"], golden.inputs[others[0]] if others else None
    config = encoder_config(golden.config, identities=None if y is None else y.shape[-1])
    encoder = Encoder(
        config,
        num_tokens=golden.config["x_size"] // golden.config["num_groups"],
        inputs=x.shape[-1],
    )
    fill(encoder, encoder_weights(golden.weights, config))
    with torch.no_grad():
        encoded = encode_images(
            encoder.eval(),
            torch.from_numpy(x),
            identity=None if y is None else torch.from_numpy(y),
        )
    flat = {"x": encoded.tokens, "latents": encoded.latents}
    return {name: value.unflatten(0, x.shape[:2]).numpy() for name, value in flat.items()}


KINDS: dict[str, Callable[[Golden], Arrays]] = {"encoder": encode}


def differences(golden: Golden) -> dict[str, float]:
    """The largest absolute difference of every output; NaN counts as infinite."""
    kind = golden.config.get("kind")
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} cannot be compared; known: {', '.join(KINDS)}")
    if not golden.outputs:
        raise ValueError("holds no outputs to compare with")
    found = KINDS[kind](golden)
    largest = {}
    for name, wanted in golden.outputs.items():
        if name not in found or found[name].shape != wanted.shape:
            raise ValueError(f"output {name!r} of shape {wanted.shape} is not computed here")
        difference = np.abs(found[name].astype(np.float64) - wanted.astype(np.float64))
        largest[name] = float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))
    return largest


def main(arguments: list[str] | None = None) -> int:
    """Compare every file named and say how far apart they are."""
    parser = argparse.ArgumentParser(prog="python -m fit_model.parity", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    options = parser.parse_args(arguments)
    worst = 0
    for path in options.files:
        try:
            largest = differences(read(path))
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            worst = 2
            continue
        for name, difference in largest.items():
            within = difference <= options.tolerance
            print(f"{path.name}  {name:10s} {difference:.2e}  {'ok' if within else 'TOO FAR'}")
            worst = max(worst, 0 if within else 1)
    return worst


if __name__ == "__main__":
    sys.exit(main())
