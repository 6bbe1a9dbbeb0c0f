"""Golden files of the operators that mix through statistics, transforms and latents."""

from collections.abc import Callable

from fit_model.attention.place import Place
from fit_model.attention.tssa import Tssa, TssaConfig
from fit_model.attention.tssa_causal import CausalTssa
from fit_model.golden import Arrays, Golden
from fit_model.golden_modules import run


def tssa_config(golden: Golden) -> TssaConfig:
    """The settings a file asks for, biases where it has them."""
    return TssaConfig(
        score_bias="positions" if "score_bias" in golden.weights else "none",
        qkv_bias="qkv.bias" in golden.weights,
        out_bias="out.bias" in golden.weights,
        norm_eps=golden.config.get("norm_eps", TssaConfig.norm_eps),
        membership_eps=golden.config.get("membership_eps", TssaConfig.membership_eps),
        cumsum_minimum=golden.config.get("cumsum_clamp", TssaConfig.cumsum_minimum),
    )


def tssa(golden: Golden) -> Arrays:
    """Output y of attention by token statistics, in the form that `causal` names."""
    causal = golden.config.get("causal", False)
    bias = golden.weights.get("score_bias")
    place = Place(
        num_tokens=None if bias is None else bias.shape[1], causal="tokens" if causal else "none"
    )
    form = CausalTssa if causal else Tssa
    width, heads = golden.setting("dim"), golden.setting("heads")
    return run(golden, form(tssa_config(golden), width=width, heads=heads, place=place))


STATISTICS_KINDS: dict[str, Callable[[Golden], Arrays]] = {"tssa": tssa, "tssa_causal": tssa}
