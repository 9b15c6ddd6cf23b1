"""The weighted sum and its own backward pass, against autograd of the plain sum."""

import itertools

import pytest
import torch
from torch import Tensor

from skipsweep.model.weighted import WeightedSum, weighted_sum


def operands(count: int, dtype: torch.dtype, wide: torch.dtype, needs: tuple[bool, ...]) -> tuple[list[Tensor], ...]:
    source = torch.Generator().manual_seed(count)
    tensors = [torch.randn(2, 3, 4, generator=source, dtype=torch.float64).to(dtype) for _ in range(count)]
    weights = [torch.randn((), generator=source, dtype=torch.float64).to(wide) for _ in range(count)]
    for operand, need in zip([*tensors, *weights], needs, strict=True):
        operand.requires_grad_(need)
    return tensors, weights


def gradients(total: Tensor, given: list[Tensor], grad: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(total, [x for x in given if x.requires_grad], grad))


def plain(tensors: list[Tensor], weights: list[Tensor]) -> Tensor:
    return torch.stack([x * w for x, w in zip(tensors, weights, strict=True)]).sum(0)


@pytest.mark.parametrize("needs", [n for n in itertools.product((False, True), repeat=4) if any(n)])
def test_value_and_gradients_are_those_of_the_plain_sum(needs):
    tensors, weights = operands(2, torch.float64, torch.float64, needs)
    grad = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    ours, theirs = weighted_sum(tensors, weights), plain(tensors, weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
    for our, their in zip(*(gradients(y, [*tensors, *weights], grad) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_gradients_agree_with_differences(count):
    tensors, weights = operands(count, torch.float64, torch.float64, (True,) * 2 * count)
    assert torch.autograd.gradcheck(lambda *x: weighted_sum(list(x[:count]), list(x[count:])), (*tensors, *weights))


def test_one_tensor_may_come_twice():
    """Before block 0 the stream is the token embedding x00."""
    (x,), weights = operands(1, torch.float64, torch.float64, (True, True))
    other = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    total = weighted_sum([x, x], [weights[0], other])
    total.sum().backward()
    torch.testing.assert_close(x.grad, (weights[0] + 0.3).detach().expand(2, 3, 4))
    assert weights[0].grad == other.grad
    torch.testing.assert_close(other.grad, x.detach().sum())


def test_operands_are_left_as_they_were():
    tensors, weights = operands(3, torch.float32, torch.float32, (True,) * 6)
    before = [x.detach().clone() for x in (*tensors, *weights)]
    weighted_sum(tensors, weights).sum().backward()
    assert all(torch.equal(x, old) for x, old in zip((*tensors, *weights), before, strict=True))


def test_bfloat16_tensors_keep_float32_weights():
    """The sum has the tensors' precision, gradients that of what they belong to; all are right to rounding."""
    tensors, weights = operands(3, torch.bfloat16, torch.float32, (True,) * 6)
    exact = [x.detach().double().requires_grad_() for x in (*tensors, *weights)]
    grad = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(9)).bfloat16()
    ours, right = weighted_sum(tensors, weights), plain(exact[:3], exact[3:])
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), right, rtol=2e-2, atol=2e-2)
    found = gradients(ours, [*tensors, *weights], grad)
    assert [g.dtype for g in found] == [torch.bfloat16] * 3 + [torch.float32] * 3
    for our, it in zip(found[:3], gradients(right, exact, grad.double())[:3], strict=True):
        torch.testing.assert_close(our.double(), it, rtol=1e-2, atol=1e-6)
    for our, it in zip(found[3:], gradients(plain(exact[:3], exact[3:]), exact, grad.double())[3:], strict=True):
        torch.testing.assert_close(our.double(), it, rtol=1e-6, atol=1e-6)


def test_weights_one_and_zero_are_exact():
    tensors, _ = operands(2, torch.float32, torch.float32, (False,) * 4)
    assert torch.equal(weighted_sum(tensors, [torch.tensor(1.0), torch.tensor(0.0)]), tensors[0])


def test_tensors_and_weights_must_be_as_many():
    tensors, weights = operands(2, torch.float32, torch.float32, (False,) * 4)
    with pytest.raises(ValueError, match="zip"):
        WeightedSum()(tensors, weights[:1])
