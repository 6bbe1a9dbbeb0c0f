"""ViX against PyTorch's own transformer and against loops, and what it costs."""

import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fit_model.flops import forward_macs
from fit_model.groups import collate
from fit_model.models import build
from fit_model.tokens import normalized
from fit_model.vix_ends import Mean, SinCos2d
from fit_model.vix_layers import ClassAttentionLayer, LocalPatchInteraction
from tests.fit_model.examples import BANDS, randomize
from tests.fit_model.test_vix import KINDS, config_of, model_of, whole

ROWS, COLUMNS, WIDTH = 3, 4, 6


def torchs_layer(ours: nn.Module, *, width: int, heads: int) -> nn.Module:
    """PyTorch's transformer layer with the weights of one of ours."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 2 * width, 0.0, "gelu", layer_norm_eps=1e-6, norm_first=True, batch_first=True
    )
    mixing = ours.attention
    layer.self_attn.in_proj_weight.data = torch.cat([mixing.query.weight, mixing.key_value.weight])
    layer.self_attn.in_proj_bias.data = torch.cat([mixing.query.bias, mixing.key_value.bias])
    layer.self_attn.out_proj = mixing.out
    layer.norm1, layer.norm2 = ours.norm, ours.feed_forward.norm
    layer.linear1, layer.linear2 = ours.feed_forward.expand, ours.feed_forward.contract
    return layer.eval()


@torch.no_grad()
def test_the_vision_transformer_is_pytorchs():
    model, batch = model_of(), whole(1)
    vix = model.vix
    patches = nn.Conv2d(BANDS, 16, 4, stride=4).double()
    kernels = vix.stem.project.weight.unflatten(1, (4, 4, BANDS))
    patches.weight.copy_(kernels.permute(0, 3, 1, 2))
    patches.bias.copy_(vix.stem.project.bias)
    picture = model.whole(normalized(batch, config=model.config.input), batch).double()
    x = patches(picture.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    x = torch.cat([vix.class_token.token[None], x], 1) + vix.position.table
    for layer in vix.layers:
        x = torchs_layer(layer, width=16, heads=2)(x)
    wanted = model.head.project(model.head.norm(x[:, 0]))
    torch.testing.assert_close(model(batch), wanted, rtol=1e-9, atol=1e-9)


def test_class_attention_keeps_the_quirks_of_the_public_code():
    layer = ClassAttentionLayer(
        width=8, heads=2, mlp_ratio=2, layer_scale=0.5, dropout=0.0, drop_path=0.0
    )
    layer, x = randomize(layer).double(), torch.randn(3, 5, 8, dtype=torch.float64)
    first, second = layer.attention_scale.layer_scale, layer.feed_forward_scale.layer_scale
    normed = layer.norm(x)
    others = layer.feed_forward_norm(x[:, 1:] + first * normed[:, 1:])
    torch.testing.assert_close(layer(x)[:, 1:], 2 * others)
    query = layer.attention.query(normed[:, 0])
    key, value = layer.attention.key_value(normed).chunk(2, -1)
    read = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = torch.einsum("bd,bkd->bk", query[:, head], key[..., head]) / 2
        read.append(torch.einsum("bk,bkd->bd", scores.softmax(-1), value[..., head]))
    token = x[:, 0] + first * layer.attention.out(torch.cat(read, -1))
    token = layer.feed_forward_norm(token)
    thought = layer.contract(nn.functional.gelu(layer.expand(token)))
    torch.testing.assert_close(layer(x)[:, 0], token + second * thought)


def correlated(maps: dict, conv: nn.Conv2d) -> dict:
    """Every channel with its own filter, over places that are there."""
    found = {}
    for row in range(ROWS):
        for column in range(COLUMNS):
            total = conv.bias.clone()
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    near = maps.get((row + down, column + right))
                    if near is not None:
                        total = total + conv.weight[:, 0, down + 1, right + 1] * near
            found[row, column] = total
    return found


@pytest.mark.parametrize("unseen", [(), (0, 5, 6, 11)])
@torch.no_grad()
def test_local_patches_are_their_loop_and_unseen_ones_are_not_there(unseen):
    layer = randomize(LocalPatchInteraction(WIDTH, grid=(ROWS, COLUMNS))).double().eval()
    layer.batch_norm.running_mean.uniform_(-1, 1)
    layer.batch_norm.running_var.uniform_(0.5, 2)
    x = torch.randn(1, ROWS * COLUMNS, WIDTH, dtype=torch.float64)
    seen = torch.ones(1, ROWS * COLUMNS, dtype=torch.bool)
    seen[0, list(unseen)] = False
    normed = layer.norm(x)[0]
    there = [number for number in range(ROWS * COLUMNS) if number not in unseen]
    maps = {divmod(number, COLUMNS): normed[number] for number in there}
    norm = layer.batch_norm
    scale = norm.gain / (norm.running_var + 1e-5).sqrt()
    maps = {
        place: scale * (0.5 * each * (1 + torch.erf(each / math.sqrt(2))) - norm.running_mean)
        + norm.bias
        for place, each in correlated(maps, layer.first).items()
        if place in maps
    }
    wanted = torch.stack(list(correlated(maps, layer.second).values()))
    found = layer(x, seen[:, None, None] if unseen else None)[0]
    torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_the_mean_is_that_of_tokens_that_are_seen():
    tokens = torch.randn(2, 5, 3, dtype=torch.float64)
    seen = torch.tensor([[True] * 5, [False, True, False, True, False]])
    wanted = torch.stack([tokens[0].mean(0), tokens[1, [1, 3]].mean(0)])
    torch.testing.assert_close(Mean()(tokens, seen), wanted)
    assert torch.equal(Mean()(tokens, None), tokens.mean(1))


@torch.no_grad()
def test_codes_of_the_grid_leave_the_class_token_alone():
    place = config_of().face.place(group_side_px=8)
    assert place.prefix == 1
    code = SinCos2d(place=place, width=16, std=0.0)(torch.zeros(1, 25, 16, dtype=torch.float64))
    assert (code[0, 0] == 0).all()
    row, column = 2, 5
    frequency = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    blocks = [torch.sin(column * frequency), torch.cos(column * frequency)]
    blocks += [torch.sin(row * frequency), torch.cos(row * frequency)]
    torch.testing.assert_close(code[0, 1 + row * 6 + column], torch.cat(blocks))


def counted(model: nn.Module, images: int) -> int:
    batch = collate([whole(seed) for seed in range(images)])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_costs_as_many_multiply_adds_as_pytorch_counts(kind):
    config = config_of(**KINDS[kind])
    model = build(config).eval()
    more = counted(model, 3) - counted(model, 2)
    assert more == forward_macs(config, [6]) + 16 * 3


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_bf16_stays_near_float32(kind):
    model = build(config_of(**KINDS[kind])).eval()
    wanted = model(whole())
    found = model.to(torch.bfloat16)(whole())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.1)


def test_drop_path_leaves_whole_residuals_out():
    torch.manual_seed(0)
    model = build(config_of(drop_path=0.5)).train()
    batch = collate([whole(1)] * 8)
    assert len(model(batch).unique(dim=0)) > 1
    plain = build(config_of(drop_path=0.0))
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(batch), plain(batch))
