"""The registry of token mixers: what `local_operator` and `global_operator` may name.

    softmax                        an operator with the settings of its paper
    linformer@rank=16              with one of them changed
    aft_local@window=8,rank=none   with several

"softmax" and "softmax_reference" mix by scores of pairs (`operators`); all others are layers of
their own, a file each beside this one.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from fit_model.attention.aft import AftFull, AftFullConfig, AftSimple, AftSimpleConfig
from fit_model.attention.aft_conv import AftConv, AftConvConfig
from fit_model.attention.aft_local import AftLocal, AftLocalConfig
from fit_model.attention.chunks import InChunks
from fit_model.attention.fnet import Fnet, FnetConfig
from fit_model.attention.linformer import Linformer, LinformerConfig
from fit_model.attention.mlp_mixer import MlpMixer, MlpMixerConfig
from fit_model.attention.nystromformer import Nystromformer, NystromformerConfig
from fit_model.attention.operators import CAUSAL_OPERATORS, OPERATORS, Operator
from fit_model.attention.performer import Performer, PerformerConfig
from fit_model.attention.place import Place
from fit_model.attention.rotary import Rotary, RotatedOperator
from fit_model.attention.token_mixer import TokenMixer
from fit_model.attention.tssa import TssaConfig
from fit_model.attention.tssa_causal import tssa_mixer
from fit_model.attention.xca import Xca, XcaConfig
from fit_model.choices import read_choice
from fit_model.layers import SelfHeads

MIXERS: dict[str, tuple[type, Callable[..., TokenMixer]]] = {
    "tssa": (TssaConfig, tssa_mixer),
    "aft_simple": (AftSimpleConfig, AftSimple),
    "aft_full": (AftFullConfig, AftFull),
    "aft_local": (AftLocalConfig, AftLocal),
    "aft_conv": (AftConvConfig, AftConv),
    "performer": (PerformerConfig, Performer),
    "linformer": (LinformerConfig, Linformer),
    "nystromformer": (NystromformerConfig, Nystromformer),
    "xca": (XcaConfig, Xca),
    "fnet": (FnetConfig, Fnet),
    "mlp_mixer": (MlpMixerConfig, MlpMixer),
}
CAUSAL_MIXERS = ("tssa", "aft_simple", "aft_full", "aft_local", "performer")
"""Those with forms in which no token sees a later one, or none of a later chunk."""
ROTARY_MIXERS = ("performer", "linformer", "nystromformer")
"""Those with queries and keys that a rotary code turns."""

COMPILED = (
    *OPERATORS,
    *("tssa", "aft_simple", "performer", "linformer", "xca", "fnet", "mlp_mixer"),
)
"""Those that torch.compile takes whole (fullgraph=True), causal forms and masks of tokens included.

Outputs and gradients are those of the plain layer, with the backend inductor within 1e-5 of their
size. Another length may be compiled anew. fnet claims it for places of known length; elsewhere it
looks where each sequence ends. nystromformer does not claim it: a second length trips the default
backend of torch 2.13. The other forms of AFT look at their sums to see which of them to
compute again: torch.compile runs them in pieces.
"""


def is_softmax(operator: str) -> bool:
    """Whether the operator works on scores of pairs of tokens."""
    return operator in OPERATORS


def read_operator(operator: str, *, setting: str) -> Any:
    """The settings of a mixer; None for softmax. ValueError names `setting` and what is meant."""
    if is_softmax(operator):
        return None
    kinds = {name: kind for name, (kind, _) in MIXERS.items()}
    return read_choice(operator, kinds, setting=setting, others=tuple(OPERATORS))


def build_mixer(
    operator: str,
    *,
    width: int,
    heads: int,
    place: Place,
    rotary: Rotary | None = None,
    setting: str = "operator",
) -> nn.Module:
    """The layer that mixes tokens as `operator` says: a TokenMixer, or SelfHeads for softmax.

    Raises ValueError that names `setting` where the operator cannot stand at `place`.
    """
    if is_softmax(operator):
        attend = softmax_at(place, operator=operator)
        if rotary is not None:
            attend = RotatedOperator(attend, rotary)
        return SelfHeads(width=width, heads=heads, attend=attend)
    config = read_operator(operator, setting=setting)
    make = MIXERS[config.kind][1]
    turned = {} if rotary is None else {"rotary": rotary}
    try:
        return make(config, width=width, heads=heads, place=place, **turned)
    except ValueError as error:
        raise ValueError(f"{setting} is {operator!r}: {error}") from error


def softmax_at(place: Place, *, operator: str) -> Operator:
    """The form of softmax that the place asks for."""
    if place.causal == "tokens":
        return CAUSAL_OPERATORS[operator]
    attend = OPERATORS[operator]
    return attend if place.chunk is None else InChunks(attend=attend, chunk=place.chunk)


def require_rotary(operator: str, *, setting: str) -> None:
    """Refuse an operator without queries and keys that a rotary code could turn."""
    if not is_softmax(operator) and operator.partition("@")[0] not in ROTARY_MIXERS:
        raise ValueError(
            f"{setting} {operator!r} has no queries and keys that a rotary code could turn: "
            f"choose one of {', '.join((*OPERATORS, *ROTARY_MIXERS))}, or no rotary code"
        )


def require_causal(operator: str, *, setting: str) -> None:
    """Refuse an operator of which no form keeps later tokens unseen."""
    name = operator.partition("@")[0]
    if not is_softmax(operator) and name not in CAUSAL_MIXERS:
        raise ValueError(
            f"{setting} {operator!r} has no causal form, which an autoregressive model or a causal "
            f"latent mask needs: choose one of {', '.join((*OPERATORS, *CAUSAL_MIXERS))}"
        )
