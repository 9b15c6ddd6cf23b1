"""Norm, activation, rotary, context, block: each against its formula."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_recipes import recipe

from skipsweep.model.attention import ChunkedMask
from skipsweep.model.blocks import Block, relu_squared, rotate
from skipsweep.model.context import TokenContext, rotary_table
from skipsweep.model.norm import norm
from skipsweep.model.seams import LayerContext

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---------------------------------------------------------------------------------------------------------------- norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_norm_and_its_gradient_are_torchs(dtype, scale):
    x = (draw(3, 5, 8) * scale).to(dtype).requires_grad_()
    grad = draw(3, 5, 8, dtype=dtype, seed=1)
    ours, theirs = norm(x), F.rms_norm(x, (8,))
    (our_grad,), (their_grad,) = (torch.autograd.grad(y, x, grad) for y in (ours, theirs))
    tolerance = 4 * torch.finfo(dtype).eps
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(our_grad * scale, their_grad * scale, rtol=4 * tolerance, atol=4 * tolerance)


def test_norm_gradient_by_differences_also_of_a_strided_input():
    x = draw(3, 8, 4).transpose(1, 2).requires_grad_()
    assert torch.autograd.gradcheck(norm, (x,))


def test_norm_of_zeros_is_zero_with_a_finite_gradient():
    x = torch.zeros(2, 4, requires_grad=True)
    y = norm(x)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(y, torch.zeros(2, 4))
    assert grad.isfinite().all()


def test_relu_squared_and_its_slope():
    x = draw(50).requires_grad_()
    y = relu_squared(x)
    (slope,) = torch.autograd.grad(y, x, torch.ones_like(x))
    assert torch.equal(y, x.clamp(min=0) ** 2)
    assert torch.equal(slope, 2 * x.clamp(min=0))


# -------------------------------------------------------------------------------------------------------------- rotary


def table(length, width=8, turning=4, base=10000.0, dtype=torch.float64):
    return rotary_table(length, width, turning, base, dtype, torch.device("cpu"))


@settings(deadline=None, max_examples=40)
@given(
    i=st.integers(0, 40),
    j=st.integers(0, 40),
    shift=st.integers(0, 1000),
    base=st.sampled_from([100.0, 10000.0]),
    turning=st.integers(0, 4),
)
def test_a_query_meets_a_key_by_their_distance_alone(i, j, shift, base, turning):
    q, k = draw(1, 1, 1, 8).expand(1, 1041, 1, 8), draw(1, 1, 1, 8, seed=1).expand(1, 1041, 1, 8)
    q, k = (rotate(x, table(1041, turning=turning, base=base))[0, :, 0] for x in (q, k))
    torch.testing.assert_close(q[i] @ k[j], q[i + shift] @ k[j + shift], rtol=0, atol=1e-11)


def test_rotary_tells_distances_apart_and_keeps_lengths():
    x = draw(1, 1, 1, 8).expand(1, 30, 1, 8)
    turned = rotate(x, table(30))[0, :, 0]
    torch.testing.assert_close(turned.norm(dim=-1), x[0, :, 0].norm(dim=-1))
    assert torch.equal(turned[0], x[0, 0, 0])
    assert (turned[0] @ turned.T).diff().abs().min() > 1e-4


def test_channels_beyond_the_rotary_fraction_stand_still():
    """Pairs are (j, j + 4) of 8 channels: with half of them turning, 2, 3, 6 and 7 do not."""
    x = draw(1, 30, 1, 8)
    moved = (rotate(x, table(30, turning=2)) != x)[0, 1:, 0]
    assert moved[:, [0, 1, 4, 5]].all()
    assert not moved[:, [2, 3, 6, 7]].any()


def test_rotary_turns_pairs_by_their_angle():
    x = draw(1, 30, 1, 8)
    turned, angle = rotate(x, table(30, base=100.0))[0, :, 0], torch.arange(30, dtype=torch.float64) * 100.0 ** (-1 / 3)
    a, b = x[0, :, 0, 1], x[0, :, 0, 5]
    torch.testing.assert_close(turned[:, 1], a * angle.cos() + b * angle.sin())
    torch.testing.assert_close(turned[:, 5], b * angle.cos() - a * angle.sin())


def test_longest_wavelength_is_2_pi_base():
    cos, _ = table(101, 6, 3, 100.0)
    first, middle, longest = (cos[:, 0, j] for j in range(3))
    assert first[1] == pytest.approx(math.cos(1))
    assert middle[10] == pytest.approx(math.cos(1))
    assert longest[100] == pytest.approx(math.cos(1))
    half, _ = table(101, 8, 2, 100.0)
    assert torch.equal(half[:, 0, 1], longest), "the longest wavelength belongs to the last pair that turns"


def test_rotary_angles_are_right_far_out():
    cos, sin = table(65536, dtype=torch.float32)
    angle = 65535 * 10000 ** (-1 / 3)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos[65535, 0, 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert sin[65535, 0, 1].item() == pytest.approx(math.sin(angle), abs=1e-6)


# ------------------------------------------------------------------------------------------------------------- context


def context(cfg):
    made = TokenContext(cfg, torch.float64)
    for n, parameter in enumerate(made.parameters()):
        parameter.data = 3 * draw(*parameter.shape, seed=n)
    return made


def test_token_embeddings_are_normed_and_value_embeddings_are_not():
    made, ids = context(recipe(dtype="float64")), torch.tensor([[4, 0, 4], [1, 1, 2]])
    ctx = made(ids, 0)
    for x, name in zip(ctx.embeddings, ("x00", "x01"), strict=True):
        torch.testing.assert_close(x, F.rms_norm(made.embed[name][ids], (16,)))
    assert ctx.x00 is ctx.embeddings[0]
    for layer in (0, 3):
        assert torch.equal(ctx.layers[layer].value_embedding, made.embed["ve0"][ids])


def test_every_layer_gets_what_it_is_due():
    """No attention in 1, long windows in 0 and 3, a value embedding in 0 and 3."""
    made = context(recipe(dtype="float64"))
    layers, weights = made(torch.zeros(1, 10, dtype=torch.long), 4).layers, made.lambdas()
    assert len({id(layer.rotary) for layer in layers}) == 1
    assert [layer.mask.window for layer in layers] == [4, 2, 2, 4]
    assert [layer.value_embedding is None for layer in layers] == [False, True, True, False]
    for i, layer in enumerate(layers):
        assert layer.value_lambda == weights.get(f"lambda/value/{i}/v")
        assert layer.value_embedding_lambda == weights.get(f"lambda/value/{i}/ve")


def test_the_rotary_table_is_kept_until_the_length_changes():
    made = context(recipe(dtype="float64"))
    tables = [made(torch.zeros(2, n, dtype=torch.long), 0).layers[0].rotary for n in (5, 5, 7, 5)]
    assert tables[0] is tables[1]
    assert [len(cos) for cos, _ in tables] == [5, 5, 7, 5]
    assert torch.equal(tables[0][0], tables[3][0])
    assert tables[0][0].dtype == torch.float64


def test_rotary_tables_of_a_bfloat16_model_are_float32():
    made = TokenContext(recipe(), torch.bfloat16)
    cos, sin = made(torch.zeros(2, 5, dtype=torch.long), 0).layers[0].rotary
    assert cos.dtype == sin.dtype == torch.float32


# --------------------------------------------------------------------------------------------------------------- block


def block_and_input(value_norm=False, scale=0.0, values=False, **changes):
    block = Block(
        replace(recipe(plain=True).model, dim=8, value_norm=value_norm, attention_scale=scale, **changes),
        2,
        torch.float64,
    )
    for n, parameter in enumerate(block.parameters()):
        parameter.data = draw(*parameter.shape, seed=n)
    beside = (draw(2, 6, 8, seed=7), *torch.tensor([0.7, -0.4], dtype=torch.float64)) if values else (None, None, None)
    return block, draw(2, 6, 8, seed=9), LayerContext(table(6, 4, 2, 100.0), ChunkedMask(6, None, 0, 128), *beside)


@pytest.mark.parametrize("value_norm", [False, True])
@pytest.mark.parametrize("scale", [0.0, 0.12])
@pytest.mark.parametrize("values", [False, True])
def test_block_is_its_formula(value_norm, scale, values):
    block, x, layer = block_and_input(value_norm, scale, values)
    seen = x if value_norm else F.rms_norm(x, (8,))
    q, k, v = ((seen @ part.T).view(2, 6, 2, 4).transpose(1, 2) for part in block.attention.qkv)
    v = F.rms_norm(v, (4,)) if value_norm else v
    if values:
        v = 0.7 * v - 0.4 * draw(2, 6, 8, seed=7).view(2, 6, 2, 4).transpose(1, 2)
    cos, sin = (t[:, 0, :2] for t in layer.rotary)

    def turned(a):
        a1, a2 = F.rms_norm(a, (4,)).chunk(2, -1)
        return torch.cat((a1 * cos + a2 * sin, a2 * cos - a1 * sin), -1)

    scores = turned(q) @ turned(k).transpose(-1, -2) * (scale or 1 / math.sqrt(4))
    scores = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -math.inf)
    y = x + (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 8) @ block.attention.out.T
    y = y + (F.rms_norm(y, (8,)) @ block.mlp.fc.T).relu() ** 2 @ block.mlp.proj.T
    torch.testing.assert_close(block(x, None, layer), y, rtol=1e-12, atol=1e-12)


def test_a_block_without_attention_is_its_mlp():
    block, x, layer = block_and_input(no_attention=[2])
    assert block.attention is None
    y = x + (F.rms_norm(x, (8,)) @ block.mlp.fc.T).relu() ** 2 @ block.mlp.proj.T
    torch.testing.assert_close(block(x, None, layer), y, rtol=1e-12, atol=1e-12)
    assert block_and_input(no_attention=[1, 3])[0].attention is not None


def test_normed_values_make_attention_blind_to_the_streams_length():
    block, x, layer = block_and_input(value_norm=True)
    near, far = block.attention(x, layer), block.attention(100 * x, layer)
    torch.testing.assert_close(near, far, rtol=1e-9, atol=1e-9)


def test_a_closed_gate_removes_what_the_block_adds_and_nothing_else():
    block, x, layer = block_and_input()
    gate = torch.ones(2, 6, 1, dtype=torch.float64)
    gate[0, 3] = 0
    gated, dense = block(x, gate, layer), block(x, None, layer)
    assert torch.equal(gated[0, 3], x[0, 3])
    gate[0, 3] = 1
    assert torch.equal(block(x, gate, layer), dense)
    assert not torch.equal(dense[0, 3], x[0, 3])
