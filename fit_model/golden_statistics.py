"""Golden files of the operators that mix through statistics, transforms and latents."""

from collections.abc import Callable, Mapping

from torch import nn

from fit_model.attention.bixt import BidirectionalCross, BidirectionalLayer, BixtConfig
from fit_model.attention.fnet import Fnet, FnetConfig
from fit_model.attention.place import Place
from fit_model.attention.tssa import Tssa, TssaConfig
from fit_model.attention.tssa_causal import CausalTssa
from fit_model.attention.xca import Xca, XcaConfig
from fit_model.golden import Arrays, Golden
from fit_model.golden_modules import answer, input_leaves, load, run


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


def xca(golden: Golden) -> Arrays:
    """Output y of cross-covariance attention."""
    config = XcaConfig(
        qkv_bias="qkv.bias" in golden.weights,
        out_bias="out.bias" in golden.weights,
        norm_eps=golden.config.get("norm_eps", XcaConfig.norm_eps),
    )
    width, heads = golden.setting("dim"), golden.setting("heads")
    return run(golden, Xca(config, width=width, heads=heads, place=Place()))


def fnet(golden: Golden) -> Arrays:
    """Output y of mixing by a Fourier transform."""
    return run(golden, Fnet(FnetConfig(), width=golden.setting("dim"), heads=1, place=Place()))


def bixt(golden: Golden) -> Arrays:
    """Outputs y, of tokens, and latents of a bi-directional cross-attention alone."""
    return exchange(golden, BidirectionalCross, names={})


def bixt_block(golden: Golden) -> Arrays:
    """Outputs y and latents of an exchange with norms and residuals."""
    if golden.config.get("mlp", False) or not golden.config.get("residual", True):
        raise ValueError("config: a bixt_block is compared with its residuals and without an mlp")
    inside = [name for name in golden.weights if name.split(".")[1] in ("r", "v", "out")]
    return exchange(golden, BidirectionalLayer, names={name: f"exchange.{name}" for name in inside})


def exchange(
    golden: Golden,
    kind: type[BidirectionalCross] | type[BidirectionalLayer],
    *,
    names: Mapping[str, str],
) -> Arrays:
    """Outputs y and latents of a module that takes both streams."""
    inputs = input_leaves(golden)
    if not {"x", "latents"} <= inputs.keys():
        raise ValueError(f"inputs: x and latents are needed, not {', '.join(golden.inputs)}")
    config = BixtConfig(
        bias=golden.config.get("bias", True),
        layer_scale=1.0 if "tokens.layer_scale" in golden.weights else None,
        norm_eps=golden.config.get("layer_norm_eps", BixtConfig.norm_eps),
    )
    widths = {f"{name}_width": inputs[key].shape[-1] for name, key in STREAMS.items()}
    module: nn.Module = kind(config, **widths, heads=golden.setting("heads"))
    weights = load(module, golden, names=names)
    got = module(inputs["x"], inputs["latents"])
    outputs = {"y": got.tokens, "latents": got.latents}
    return answer(golden, outputs, inputs=inputs, weights=weights)


STREAMS = {"token": "x", "latent": "latents"}
STATISTICS_KINDS: dict[str, Callable[[Golden], Arrays]] = {
    "tssa": tssa,
    "tssa_causal": tssa,
    "xca": xca,
    "fnet": fnet,
    "bixt": bixt,
    "bixt_block": bixt_block,
}
