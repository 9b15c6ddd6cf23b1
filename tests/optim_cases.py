"""Parameters, gradients and settings for the tests of optimisers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from skipsweep.config import AdamW, Muon
from skipsweep.distributed import World
from skipsweep.optim.optimiser import Optimiser

CHECKOUT = Path(__file__).resolve().parents[1]
SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "context.embed": ((20, 8), "embed"),
    "context.extra": ((20, 8), "embed"),
    "blocks.0.attention.qkv": ((3, 8, 8), "matrix"),
    "blocks.0.attention.out": ((8, 8), "matrix"),
    "blocks.0.mlp.fc": ((32, 8), "matrix"),
    "blocks.0.mlp.proj": ((8, 32), "matrix"),
    "blocks.1.mlp.fc": ((32, 8), "matrix"),
    "blocks.1.mlp.proj": ((8, 32), "matrix"),
    "inject.lambdas.weight": ((5,), "scalar"),
    "head.weight": ((24, 8), "head"),
}
"""Name -> (shape, role)."""
ROLES = {name: role for name, (_, role) in SHAPES.items()}
ADAMW = AdamW(lr=0.01, embed_lr=0.1, head_lr=0.03, scalar_lr=0.5, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
GO, HALT = torch.zeros(()), torch.ones(())


def muon(**changes: Any) -> Muon:
    """`optim=muon`, as shipped."""
    values = yaml.safe_load((CHECKOUT / "conf/optim/muon.yaml").read_text())
    values.pop("defaults")
    return Muon(**{**values, **changes})


def draw(name: str, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers in the shape of a parameter."""
    generator = torch.Generator().manual_seed(1000 * seed + list(SHAPES).index(name))
    return torch.randn(SHAPES[name][0], generator=generator, dtype=torch.float64).to(dtype)


def parameters(dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(draw(name, 0, dtype)) for name in SHAPES}


def loss_of(ps: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor]) -> Tensor:
    """A loss that has exactly these gradients, whatever the parameters."""
    return torch.stack([(p * gradients[name]).sum().double() for name, p in ps.items()]).sum()


def gradients_of(step: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: draw(name, 1 + step, dtype) for name in SHAPES}


def apply(
    optimiser: Optimiser, ps: Mapping[str, nn.Parameter], step: int, lr_factor: float = 1.0, halted: Tensor = GO
) -> None:
    """One step on gradients that are a function of the step."""
    dtype = next(iter(ps.values())).dtype
    optimiser.backward(loss_of(ps, gradients_of(step, dtype)), last=True)
    optimiser.step(step, lr_factor, halted)


def alone(optim: AdamW | Muon, ps: Mapping[str, nn.Parameter], **options: Any) -> Optimiser:
    """An optimiser on one process."""
    return Optimiser(optim, ps, ROLES, World(), **options)


def values(ps: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in ps.items()}


def state_of(optimiser: Optimiser) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in optimiser.state().items()}


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(
        torch.equal(left[key].view(-1).view(torch.uint8), right[key].view(-1).view(torch.uint8)) for key in left
    )


def distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """The largest difference of any number."""
    assert left.keys() == right.keys()
    return max((left[key].double() - right[key].double()).abs().max().item() for key in left)
