"""Logits, softcap and the loss: values and both gradients against autograd of the plain formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from skipsweep.model import head as head_module
from skipsweep.model.head import Head, loss_and_slope, softcapped

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
ROWS = 11
LIMITS = [1, 11, 22, 60, 220]
"""Logits at once: 1, 1, 2, 5 and 20 of the 21 tokens."""


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def head_and_batch(softcap: float = 15.0, dtype: torch.dtype = torch.float64) -> tuple[Head, Tensor, Tensor]:
    """A head of 11 rows for 9 token ids, features (3, 7, 8) and targets (3, 7)."""
    head = Head(inputs=8, rows=ROWS, softcap=softcap, dtype=dtype)
    head.weight.data = draw(ROWS, 8, dtype=head.weight.dtype)
    targets = torch.randint(9, (3, 7), generator=torch.Generator().manual_seed(0))
    return head, draw(3, 7, 8, dtype=dtype, seed=1).requires_grad_(), targets


def plain(head: Head, features: Tensor, targets: Tensor, reduction: str) -> Tensor:
    loss = F.cross_entropy(head(features).flatten(0, 1), targets.flatten(), reduction=reduction)
    return loss.view_as(targets) if reduction == "none" else loss


def with_gradients(loss: Tensor, head: Head, features: Tensor, weights: Tensor | float = 1.0) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad((loss * weights).sum(), (features, head.weight))]


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-12) -> None:
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance)


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
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weight_logits_and_loss_are_float32_at_least(dtype, reduction):
    head, features, targets = head_and_batch(dtype=dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert head.weight.dtype == head(features).dtype == expected
    loss = head.loss(features, targets, reduction)
    assert loss.dtype == expected
    loss.sum().backward()
    assert features.grad is not None
    assert head.weight.grad is not None
    assert (features.grad.dtype, head.weight.grad.dtype) == (dtype, expected)


@pytest.mark.parametrize("softcap", [0.0, 1.5, 15.0])
def test_loss_is_the_cross_entropy_of_the_logits(softcap):
    head, features, targets = head_and_batch(softcap)
    picked = head(features).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(head.loss(features, targets, "none"), -picked)
    torch.testing.assert_close(head.loss(features, targets, "sum"), -picked.sum())
    torch.testing.assert_close(head.loss(features, targets.int(), "mean"), -picked.mean())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("limit", [*LIMITS, 10**6])
def test_loss_and_both_gradients_are_autograds_of_the_plain_formula(monkeypatch, limit, softcap, reduction):
    head, features, targets = head_and_batch(softcap)
    weights = draw(3, 7, seed=5) if reduction == "none" else 3.0
    theirs = with_gradients(plain(head, features, targets, reduction), head, features, weights)
    monkeypatch.setitem(head_module.MAX_LOGITS, "cpu", limit)
    assert_same(with_gradients(head.loss(features, targets, reduction), head, features, weights), theirs)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_the_fused_gradients_by_differences(softcap):
    head, features, targets = head_and_batch(softcap)

    def loss(features: Tensor, weight: Tensor) -> Tensor:
        args = (targets.flatten(), softcap, 4, loss_and_slope)
        return head_module._SummedLoss.apply(features.flatten(0, 1), weight, *args)  # type: ignore[return-value]

    assert torch.autograd.gradcheck(loss, (features, head.weight))


@pytest.mark.parametrize("factor", [3.0, -0.5])
def test_a_scaled_loss_scales_its_gradients(factor):
    head, features, targets = head_and_batch()
    once = with_gradients(head.loss(features, targets, "mean"), head, features)
    scaled = with_gradients(head.loss(features, targets, "mean") * factor, head, features)
    assert_same(scaled, [factor * part for part in once])


def test_gradients_of_several_batches_add_up():
    head, features, targets = head_and_batch()
    for part in range(3):
        (head.loss(features[part : part + 1], targets[part : part + 1], "mean") / 3).backward()
    expected = with_gradients(plain(head, features, targets, "mean"), head, features)
    assert features.grad is not None
    assert head.weight.grad is not None
    assert_same([features.grad, head.weight.grad], expected[1:])


def test_bfloat16_features_meet_a_float32_weight():
    """The product is in bfloat16, all else in float32: as near as autograd through the same product."""
    head, features, targets = head_and_batch(dtype=torch.bfloat16)
    exact, wide, _ = head_and_batch()
    exact.weight.data = head.weight.detach().bfloat16().double()
    wide.data = features.detach().double()
    ours = with_gradients(head.loss(features, targets, "mean"), head, features)
    theirs = with_gradients(plain(head, features, targets, "mean"), head, features)
    right = with_gradients(plain(exact, wide, targets, "mean"), exact, wide)
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-6)
    for our, their, it in zip(ours, theirs, right, strict=True):
        assert (our.double() - it).norm() <= 1.5 * (their.double() - it).norm() + 1e-3 * it.norm()


def test_rows_beyond_the_vocabulary_take_part_in_the_softmax():
    head, features, targets = head_and_batch()
    head.weight.data.zero_()
    assert head.loss(features, targets, "mean").item() == pytest.approx(math.log(ROWS), rel=1e-14)
    (slope,) = torch.autograd.grad(head.loss(features, targets, "sum"), head.weight)
    torch.testing.assert_close(slope[9], features.detach().sum((0, 1)) / ROWS)


def test_without_gradients_losses_are_the_same(monkeypatch):
    head, features, targets = head_and_batch()
    expected = [head.loss(features, targets, reduction).detach() for reduction in ("mean", "sum", "none")]
    monkeypatch.setitem(head_module.MAX_LOGITS, "cpu", 60)
    with torch.no_grad():
        assert_same([head.loss(features, targets, reduction) for reduction in ("mean", "sum", "none")], expected)


def test_extreme_logits_have_a_finite_loss_and_slope():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    for softcap in (0.0, 15.0):
        loss, slope = loss_and_slope(logits, torch.tensor([0, 0]), softcap)
        assert loss.isfinite()
        assert slope.isfinite().all()
    assert loss_and_slope(logits, torch.tensor([0, 0]), 0.0)[0].item() == pytest.approx(2e4)


@pytest.mark.parametrize(
    ("rows", "tokens"), [(257, 130560), (50304, 640), (200_000, 128), (2**18 + 1, 127), (2**26, 1)]
)
def test_pieces_are_as_large_as_the_limit_allows(rows, tokens):
    """In multiples of 128 tokens, where there are as many."""
    with torch.device("meta"):
        head = Head(inputs=1, rows=rows, softcap=0.0, dtype=torch.float32)
    assert head._piece(torch.empty(1, 1)) == tokens


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("limit", LIMITS)
def test_logits_are_never_whole_above_the_limit(monkeypatch, limit, reduction):
    head, features, targets = head_and_batch()
    monkeypatch.setitem(head_module.MAX_LOGITS, "cpu", limit)
    sizes, saved = [], []

    def kernel(logits: Tensor, *args):
        sizes.append(logits.numel())
        return loss_and_slope(logits, *args)

    head._kernel = kernel
    head.register_forward_hook(lambda module, args, logits: sizes.append(logits.numel()))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        loss = head.loss(features, targets, reduction).sum()
    loss.backward()
    pieces = math.ceil(targets.numel() / max(limit // ROWS, 1))
    assert len(sizes) == (pieces if reduction == "sum" else 2 * pieces), "forward and, where needed, once more backward"
    assert max(sizes) <= max(limit, ROWS)
    assert max(saved) < targets.numel() * ROWS


def test_unknown_reduction_is_refused():
    head, features, targets = head_and_batch()
    with pytest.raises(KeyError, match="median"):
        head.loss(features, targets, "median")
