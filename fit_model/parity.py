"""Compare this code with numbers of the official one: `python -m fit_model.parity FILE.npz ...`

A golden file holds `config` (JSON, under the official names), `weights/*`, `inputs/*`, `outputs/*`,
and, when it is of an attention operator, `grads/*` and `weight_grads/*`. Prints the largest
difference of every output, for operators relative to the output's largest number. Exits 0 when all
stay within the tolerance, 1 when one does not, 2 when a file cannot be compared.
"""

import argparse
import json
import sys
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from fit_model.golden import KINDS, Arrays, Golden
from fit_model.golden_operators import operator_differences, operator_tolerance

TOLERANCE = 2e-4
SAMPLER_TOLERANCE = 1e-3
"""Differences add up over the steps of a sampler."""


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

    gradients = [name for name in arrays if name.startswith(("grads/", "weight_grads/"))]
    return Golden(
        config=config,
        weights=under("weights"),
        inputs=under("inputs"),
        outputs=under("outputs"),
        gradients={name: arrays[name] for name in gradients},
    )


def differences(golden: Golden) -> dict[str, float]:
    """The largest difference of every output, absolute save for operators; NaN is infinite."""
    if "operator" in golden.config:
        return operator_differences(golden)
    kind = golden.config.get("kind")
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} cannot be compared; known: {', '.join(KINDS)}")
    if not golden.outputs:
        raise ValueError("holds no outputs to compare with")
    with torch.no_grad():
        found = KINDS[kind](golden)
    largest = {}
    for name, wanted in golden.outputs.items():
        if name not in found or found[name].shape != wanted.shape:
            raise ValueError(f"output {name!r} of shape {wanted.shape} is not computed here")
        difference = np.abs(found[name].astype(np.float64) - wanted.astype(np.float64))
        largest[name] = float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))
    return largest


def usual_tolerance(golden: Golden) -> float:
    """What `differences` may be when nobody says otherwise."""
    if "operator" in golden.config:
        return operator_tolerance(golden)
    return SAMPLER_TOLERANCE if golden.config["kind"] == "sampler" else TOLERANCE


def main(arguments: list[str] | None = None) -> int:
    """Compare every file named and say how far apart they are."""
    parser = argparse.ArgumentParser(prog="python -m fit_model.parity", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--tolerance", type=float, default=None)
    options = parser.parse_args(arguments)
    worst = 0
    for path in options.files:
        try:
            golden = read(path)
            largest = differences(golden)
        except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            worst = 2
            continue
        given = options.tolerance
        tolerance = usual_tolerance(golden) if given is None else given
        for name, difference in largest.items():
            within = difference <= tolerance
            print(f"{path.name}  {name:18s} {difference:.2e}  {'ok' if within else 'TOO FAR'}")
            worst = max(worst, 0 if within else 1)
    return worst


if __name__ == "__main__":
    sys.exit(main())
