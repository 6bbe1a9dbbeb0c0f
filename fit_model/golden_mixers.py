"""Answers to golden files of Performer, Linformer and Nystromformer."""

from torch import nn

from fit_model.attention.linformer import Linformer, LinformerConfig
from fit_model.attention.nystromformer import Nystromformer, NystromformerConfig
from fit_model.attention.performer import Performer, PerformerConfig
from fit_model.attention.place import Place
from fit_model.golden import Arrays, Golden
from fit_model.golden_modules import run

LINEARS = {"q": "query", "k": "key", "v": "value"}
NAMES = {
    f"{theirs}.{part}": f"{ours}.{part}"
    for theirs, ours in LINEARS.items()
    for part in ("weight", "bias")
}


def place_of(golden: Golden) -> Place:
    """A sequence without a grid, causal if the file says so."""
    causal = golden.config.get("causal", False)
    return Place(num_tokens=golden.setting("tokens"), causal="tokens" if causal else "none")


def qkv_bias(golden: Golden) -> bool:
    """Whether the file has biases of queries, keys and values."""
    return "q.bias" in golden.weights


def performer(golden: Golden) -> Arrays:
    """FAVOR+ with the features of the file and performer-pytorch's stabilisers."""
    config = PerformerConfig(
        features=golden.setting("features"),
        eps=golden.setting("eps"),
        stabiliser="projection",
        qkv_bias=qkv_bias(golden),
    )
    width, heads = golden.setting("dim"), golden.setting("heads")
    mixer = Performer(config, width=width, heads=heads, place=place_of(golden))
    return run(golden, mixer, names=NAMES)


def linformer(golden: Golden) -> Arrays:
    """Linformer with projections of any sharing."""
    config = LinformerConfig(
        rank=golden.setting("k"),
        sharing="key_value" if golden.config.get("share_kv", False) else "none",
        key_heads="one" if golden.config.get("one_kv_head", False) else "all",
        qkv_bias=qkv_bias(golden),
    )
    width, heads = golden.setting("dim"), golden.setting("heads")
    mixer = Linformer(config, width=width, heads=heads, place=place_of(golden))
    return run(golden, mixer, names=NAMES | {"proj_k": "shorten_keys", "proj_v": "shorten_values"})


def nystromformer(golden: Golden) -> Arrays:
    """Nystromformer with the first guess that `pinv_init` tells of."""
    guess = golden.setting("pinv_init").split(":")[0]
    normalisers = {"global_max": "batch", "per_matrix": "matrix"}
    if guess not in normalisers:
        raise ValueError(f"config: pinv_init is {guess!r}; known: {', '.join(normalisers)}")
    config = NystromformerConfig(
        landmarks=golden.setting("landmarks"),
        iterations=golden.setting("iterations"),
        normaliser="batch" if guess == "global_max" else "matrix",
        conv_kernel=golden.config.get("conv_kernel"),
        qkv_bias=qkv_bias(golden),
    )
    width, heads = golden.setting("dim"), golden.setting("heads")
    mixer = Nystromformer(config, width=width, heads=heads, place=place_of(golden))
    if "out.weight" not in golden.weights:
        mixer.out = nn.Identity()
    return run(golden, mixer, names=NAMES)


MIXER_KINDS = {
    "performer_softmax": performer,
    "performer_softmax_eps0": performer,
    "linformer": linformer,
    "nystrom": nystromformer,
    "nystrom_conv": nystromformer,
    "nystrom_per_matrix": nystromformer,
    "nystrom_conv_per_matrix": nystromformer,
    "nystrom_converged": nystromformer,
}
