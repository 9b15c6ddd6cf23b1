"""Norm, activation, rotary, block, head: each against its formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from skipsweep.model import head as head_module
from skipsweep.model.blocks import Block, relu_squared, rotate
from skipsweep.model.context import TokenContext, rotary_table
from skipsweep.model.head import Head, softcapped
from skipsweep.model.norm import norm

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


@settings(deadline=None, max_examples=40)
@given(i=st.integers(0, 40), j=st.integers(0, 40), shift=st.integers(0, 1000), base=st.sampled_from([100.0, 10000.0]))
def test_a_query_meets_a_key_by_their_distance_alone(i, j, shift, base):
    q, k = draw(1, 1, 1, 8).expand(1, 1041, 1, 8), draw(1, 1, 1, 8, seed=1).expand(1, 1041, 1, 8)
    table = rotary_table(1041, 8, base, q)
    q, k = rotate(q, table)[0, :, 0], rotate(k, table)[0, :, 0]
    torch.testing.assert_close(q[i] @ k[j], q[i + shift] @ k[j + shift], rtol=0, atol=1e-11)


def test_rotary_tells_distances_apart_and_keeps_lengths():
    x = draw(1, 1, 1, 8).expand(1, 30, 1, 8)
    turned = rotate(x, rotary_table(30, 8, 10000.0, x))[0, :, 0]
    torch.testing.assert_close(turned.norm(dim=-1), x[0, :, 0].norm(dim=-1))
    assert torch.equal(turned[0], x[0, 0, 0])
    assert (turned[0] @ turned.T).diff().abs().min() > 1e-4


def test_longest_wavelength_is_2_pi_base():
    cos, _ = rotary_table(101, 6, 100.0, torch.zeros(1, dtype=torch.float64))
    first, middle, longest = (cos[:, 0, j] for j in range(3))
    assert first[1] == pytest.approx(math.cos(1))
    assert middle[10] == pytest.approx(math.cos(1))
    assert longest[100] == pytest.approx(math.cos(1))


def test_rotary_angles_are_right_far_out():
    cos, sin = rotary_table(65536, 8, 10000.0, torch.zeros(1))
    angle = 65535 * 10000 ** (-1 / 3)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos[65535, 0, 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert sin[65535, 0, 1].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_the_stream_starts_from_the_normed_embedding():
    context = TokenContext(vocab=5, dim=8, head_width=4, rotary_base=100.0, dtype=torch.float64)
    context.embed.data = 3 * draw(5, 8)
    x00 = context(torch.tensor([[4, 0, 4]])).x00
    torch.testing.assert_close(x00, F.rms_norm(context.embed[[4, 0, 4]], (8,))[None])


# --------------------------------------------------------------------------------------------------------------- block


def block_and_input():
    block = Block(dim=8, heads=2, mlp_hidden=16, dtype=torch.float64)
    context = TokenContext(vocab=5, dim=8, head_width=4, rotary_base=100.0, dtype=torch.float64)
    for n, parameter in enumerate([*block.parameters(), *context.parameters()]):
        parameter.data = draw(*parameter.shape, seed=n)
    return block, draw(2, 6, 8, seed=9), context(torch.zeros(2, 6, dtype=torch.long))


def test_block_is_its_formula():
    block, x, ctx = block_and_input()
    qkv = (F.rms_norm(x, (8,)) @ block.attention.qkv.T).view(2, 6, 3, 2, 4)
    q, k, v = (qkv[:, :, n].transpose(1, 2) for n in range(3))
    cos, sin = (table[:, 0, :2] for table in ctx.rotary)

    def turned(a):
        a1, a2 = F.rms_norm(a, (4,)).chunk(2, -1)
        return torch.cat((a1 * cos + a2 * sin, a2 * cos - a1 * sin), -1)

    scores = turned(q) @ turned(k).transpose(-1, -2) / math.sqrt(4)
    scores = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -math.inf)
    y = x + (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 8) @ block.attention.out.T
    y = y + (F.rms_norm(y, (8,)) @ block.mlp.fc.T).relu() ** 2 @ block.mlp.proj.T
    torch.testing.assert_close(block(x, None, ctx), y, rtol=1e-12, atol=1e-12)


def test_a_closed_gate_removes_what_the_block_adds_and_nothing_else():
    block, x, ctx = block_and_input()
    gate = torch.ones(2, 6, 1, dtype=torch.float64)
    gate[0, 3] = 0
    gated, dense = block(x, gate, ctx), block(x, None, ctx)
    assert torch.equal(gated[0, 3], x[0, 3])
    gate[0, 3] = 1
    assert torch.equal(block(x, gate, ctx), dense)
    assert not torch.equal(dense[0, 3], x[0, 3])


# ---------------------------------------------------------------------------------------------------------------- head


def head_and_batch(softcap=15.0, dtype=torch.float64):
    head = Head(inputs=8, vocab=11, softcap=softcap, dtype=dtype)
    head.weight.data = draw(11, 8, dtype=dtype)
    targets = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0))
    return head, draw(3, 7, 8, dtype=dtype, seed=1).requires_grad_(), targets


def test_softcap_is_its_formula():
    logits = torch.tensor([-1e4, -15.0, 0.0, 1e-3, 20.0], dtype=torch.float64)
    expected = [15 * v / math.sqrt(v * v + 225) for v in logits.tolist()]
    torch.testing.assert_close(softcapped(logits, 15.0), torch.tensor(expected, dtype=torch.float64))
    head, features, _ = head_and_batch(softcap=2.0)
    assert torch.equal(head(features), softcapped(features @ head.weight.T, 2.0))


def test_no_softcap_leaves_logits_alone():
    head, features, _ = head_and_batch(softcap=0.0)
    assert torch.equal(head(features), F.linear(features, head.weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_and_loss_are_float32_at_least(dtype):
    head, features, targets = head_and_batch(dtype=dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert head(features).dtype == expected
    assert head.loss(features, targets, "mean").dtype == expected


def test_loss_is_the_cross_entropy_of_the_logits():
    head, features, targets = head_and_batch()
    picked = head(features).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(head.loss(features, targets, "none"), -picked)
    torch.testing.assert_close(head.loss(features, targets, "sum"), -picked.sum())
    torch.testing.assert_close(head.loss(features, targets.int(), "mean"), -picked.mean())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("limit", [1, 11, 22, 60, 11 * 20])
def test_loss_in_pieces_equals_the_whole_with_its_gradients(monkeypatch, limit, reduction):
    head, features, targets = head_and_batch()
    weights = draw(3, 7, seed=5) if reduction == "none" else torch.ones(())

    def loss_and_gradients():
        loss = head.loss(features, targets, reduction)
        return loss.detach(), *torch.autograd.grad((loss * weights).sum(), (features, head.weight))

    whole = loss_and_gradients()
    monkeypatch.setattr(head_module, "MAX_LOGITS", limit)
    for piece, expected in zip(loss_and_gradients(), whole, strict=True):
        torch.testing.assert_close(piece, expected, rtol=1e-12, atol=1e-13)


def test_logits_are_never_whole_above_the_limit(monkeypatch):
    head, features, targets = head_and_batch()
    monkeypatch.setattr(head_module, "MAX_LOGITS", 60)
    sizes, saved = [], []
    head.register_forward_hook(lambda module, args, logits: sizes.append(logits.numel()))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        loss = head.loss(features, targets, "mean")
    loss.backward()
    assert len(sizes) == 2 * math.ceil(targets.numel() / (60 // 11))
    assert max(sizes) <= 60
    assert sum(saved) < targets.numel() * 11


def test_unknown_reduction_is_refused():
    head, features, targets = head_and_batch()
    with pytest.raises(KeyError, match="median"):
        head.loss(features, targets, "median")
