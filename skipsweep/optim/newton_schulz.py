"""Orthogonalisation by Newton-Schulz iterations (Jordan et al. 2024)."""

from collections.abc import Sequence

import torch
from torch import Tensor

# N matrices side by side, R rows, C columns; S the smaller of the two, L the larger

Coefficients = Sequence[Sequence[float]]
"""(a, b, c) of X <- a X + b (XX')X + c (XX')^2 X, one triple per iteration."""


def orthogonalise(x_NRC: Tensor, coefficients: Coefficients, dtype: torch.dtype) -> Tensor:
    """Move all singular values of every matrix towards 1, its singular vectors left alone; iterated in `dtype`.

    Each matrix is divided by its Frobenius norm first, so that no singular value is above 1.
    """
    x_NRC = (x_NRC / (torch.linalg.matrix_norm(x_NRC, keepdim=True) + 1e-7)).to(dtype)
    is_tall = x_NRC.size(-2) > x_NRC.size(-1)
    x_NSL = x_NRC.mT if is_tall else x_NRC
    for a, b, c in coefficients:
        gram_NSS = x_NSL @ x_NSL.mT
        polynomial_NSS = torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=b, alpha=c)
        x_NSL = torch.baddbmm(x_NSL, polynomial_NSS, x_NSL, beta=a)
    return x_NSL.mT if is_tall else x_NSL
