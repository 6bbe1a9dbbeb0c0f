"""Operators cost as many multiply-adds as PyTorch counts in their products and convolutions."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fit_model.attention.mixers import CAUSAL_MIXERS, MIXERS, build_mixer
from fit_model.attention.place import Place
from fit_model.flops import forward_macs
from fit_model.groups import collate
from fit_model.models import build
from tests.fit_model.examples import image, model_config, trunk_config

WIDTH, HEADS = 12, 3
SETTINGS = [
    *MIXERS,
    "aft_full@rank=none,hidden=20,qkv_bias=false",
    "aft_local@window=7,rank=3",
    "aft_local@window=0,hidden=4",
    "aft_conv@kernel=5,axes=line,heads=2",
    "performer@features=5,qkv_bias=false",
    "linformer@rank=9,key_heads=one",
    "linformer@rank=9,sharing=key_value",
    "nystromformer@landmarks=7,iterations=2,conv_kernel=none",
    "mlp_mixer@hidden=31",
    "xca@qkv_bias=false,out_bias=false",
]
CAUSAL = [each for each in SETTINGS if each.partition("@")[0] in CAUSAL_MIXERS]


@torch.no_grad()
def counted(run, *inputs) -> int:
    """Multiply-adds that PyTorch counts."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(*inputs)
    return counter.get_total_flops() // 2


def require_counted(operator, place, num_tokens):
    mixer = build_mixer(operator, width=WIDTH, heads=HEADS, place=place)
    alone, more = (counted(mixer, torch.randn(b, num_tokens, WIDTH)) for b in (1, 3))
    assert more - alone == 2 * mixer.macs(num_tokens)


@pytest.mark.parametrize("operator", SETTINGS)
@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (9, 16)])
def test_a_sequence_costs_as_many_multiply_adds_as_pytorch_counts(operator, grid):
    require_counted(operator, Place(grid=grid), grid[0] * grid[1])


@pytest.mark.parametrize("operator", CAUSAL)
@pytest.mark.parametrize("num_tokens", [5, 63, 144])
@pytest.mark.parametrize("chunk", [1, 3, 40])
def test_a_causal_sequence_costs_as_many_multiply_adds_as_pytorch_counts(
    operator, chunk, num_tokens
):
    require_counted(operator, Place(num_tokens=144, causal="chunks", chunk=chunk), num_tokens)


@pytest.mark.parametrize("operator", ["softmax", "softmax_reference", *MIXERS])
def test_an_image_costs_as_many_multiply_adds_as_pytorch_counts(operator):
    across = "aft_conv@axes=line" if operator == "aft_conv" else operator
    trunk = trunk_config(local_operator=operator, global_operator=across)
    model = build(model_config(trunk=trunk, num_groups=4))
    two, three = (
        counted(model, collate([image(2, 2, seed=seed) for seed in range(number)]))
        for number in (2, 3)
    )
    head = 3 * trunk.latent_width
    assert three - two - head == forward_macs(model.config, [4])


class Written(TorchDispatchMode):
    """Counts the numbers that operations give, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        several = given if isinstance(given, (tuple, list)) else (given,)
        self.numbers += sum(each.numel() for each in several if isinstance(each, torch.Tensor))
        return given


@pytest.mark.parametrize("causal", ["none", "tokens"])
def test_a_near_bias_costs_as_many_times_more_as_the_sequence_is_longer(causal):
    found = []
    for num_tokens in (512, 1024, 2048):
        place = Place(num_tokens=num_tokens, causal=causal)
        mixer = build_mixer("aft_local@window=32,rank=2", width=4, heads=1, place=place)
        x = torch.randn(1, num_tokens, 4, requires_grad=True)
        with Written() as written:
            mixer(x).sum().backward()
        found.append(written.numbers)
    assert found[2] - found[1] < 2.2 * (found[1] - found[0])
