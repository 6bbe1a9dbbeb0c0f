"""What is answered to every golden file of an attention operator, and how far it is off."""

from collections.abc import Callable

import numpy as np

from fit_model.golden import Arrays, Golden
from fit_model.golden_aft import AFT_KINDS
from fit_model.golden_mixers import MIXER_KINDS
from fit_model.golden_softmax import SOFTMAX_KINDS
from fit_model.golden_statistics import STATISTICS_KINDS

DOUBLE_TOLERANCE = 1e-9
SINGLE_TOLERANCE = 2e-5
"""Largest difference relative to the largest number of an array, for files in float64, float32."""

OPERATOR_KINDS: dict[str, Callable[[Golden], Arrays]] = {
    **AFT_KINDS,
    **STATISTICS_KINDS,
    **MIXER_KINDS,
    **SOFTMAX_KINDS,
}
"""By the `operator` of a file's config. An answer holds outputs under their names, and gradients
under grads/NAME and weight_grads/NAME."""


def operator_tolerance(golden: Golden) -> float:
    """What a difference may be, from the precision the file was made in."""
    arrays = list(golden.outputs.values())
    single = golden.config.get("dtype") == "float32" or any(a.dtype == np.float32 for a in arrays)
    return SINGLE_TOLERANCE if single else DOUBLE_TOLERANCE


def operator_differences(golden: Golden) -> dict[str, float]:
    """The largest difference of every output and gradient, relative to its largest number.

    A gradient that is nothing but rounding beside the others is measured by the largest of them.
    """
    kind = golden.config["operator"]
    if kind not in OPERATOR_KINDS:
        raise ValueError(
            f"operator {kind!r} cannot be compared; known: {', '.join(OPERATOR_KINDS)}"
        )
    if not golden.outputs:
        raise ValueError("holds no outputs to compare with")
    found = OPERATOR_KINDS[kind](golden)
    wanted = golden.outputs | golden.gradients
    largest_gradient = max(map(_largest, golden.gradients.values()), default=0.0)
    differences = {}
    for name, array in wanted.items():
        if name not in found or found[name].shape != array.shape:
            raise ValueError(f"output {name!r} of shape {array.shape} is not computed here")
        scale = _largest(array)
        if name in golden.gradients and scale < operator_tolerance(golden) * largest_gradient:
            scale = largest_gradient
        difference = _largest(found[name].astype(np.float64) - array.astype(np.float64))
        differences[name] = difference / (scale or 1.0)
    return differences


def _largest(array: np.ndarray) -> float:
    return float(np.nan_to_num(np.abs(array), nan=np.inf).max(initial=0.0))
