"""Roles and initial values of parameters, by name.

Every draw depends on the seed and the parameter's own name alone: not on the device, the number of processes, the order
of construction, or which other parameters exist. Two arms of one seed share every shared parameter bit for bit.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from skipsweep.model.gate import SkipMiddle
from skipsweep.model.lambdas import Lambdas

Draw = Callable[[nn.Module, torch.Size, torch.Generator], Tensor]
"""(module that owns the parameter, shape, generator) -> initial values in float32, on the CPU."""

ROLES = ("embed", "matrix", "head", "scalar")
"""Groups of parameters that an optimiser may treat differently."""


@dataclass(frozen=True)
class Rule:
    """Role and initial values of the parameters whose name matches `pattern` (`*` spans anything)."""

    pattern: str
    role: str
    draw: Draw


def initialise(model: nn.Module, seed: int, std: float = 0.0) -> None:
    """Set every parameter of `model`, wherever it lies, as after `to_empty`.

    RULES below says to what: the medium track's values (reference record 15). With `std` (`model.init_std`) above 0 all
    tables and matrices are normal instead, with mean 0 and this standard deviation (skip-middle paper), but for those
    that are `_neutral`. Drawn in float32, then cast: models of all precisions start from the same numbers.

    Raises LookupError for a parameter that RULES does not cover.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            owner = model.get_submodule(name.rpartition(".")[0])
            rule, source = rule_of(name), generator(seed, name)
            spread = std and rule.draw in (_normal, _uniform, _zeros)
            draw = _normal(owner, parameter.shape, source) * std if spread else None
            parameter.copy_(rule.draw(owner, parameter.shape, source) if draw is None else draw)


def parameter_roles(model: nn.Module) -> dict[str, str]:
    """Parameter name -> role, one of ROLES. Raises LookupError for a parameter that no rule or several rules cover."""
    return {name: rule_of(name).role for name, _ in model.named_parameters()}


def rule_of(name: str) -> Rule:
    """The one rule that covers a parameter; LookupError unless there is exactly one."""
    matching = [rule for rule in RULES if fnmatchcase(name, rule.pattern)]
    if len(matching) != 1:
        raise LookupError(f"parameter {name} is covered by {len(matching)} rules of initialisation, not by one")
    return matching[0]


def generator(seed: int, name: str) -> torch.Generator:
    """The source of a parameter's draw: a CPU generator seeded by sha256 of seed and name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _normal(owner: nn.Module, shape: torch.Size, source: torch.Generator) -> Tensor:
    """Mean 0, standard deviation 1."""
    return torch.randn(shape, generator=source, dtype=torch.float32, device="cpu")


def _uniform(owner: nn.Module, shape: torch.Size, source: torch.Generator) -> Tensor:
    """In +-b, b = sqrt(3) * 0.5 / sqrt(fan_in)."""
    bound = math.sqrt(3) * 0.5 / math.sqrt(shape[-1])
    return torch.empty(shape, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=source)


def _zeros(owner: nn.Module, shape: torch.Size, source: torch.Generator) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def _neutral(owner: nn.Module, shape: torch.Size, source: torch.Generator) -> Tensor:
    """0 whatever `model.init_std`: where the mechanism is meant to start."""
    return _zeros(owner, shape, source)


def _gate_weight(owner: nn.Module, shape: torch.Size, source: torch.Generator) -> Tensor:
    """As `gate_targets.init` says, like the bias."""
    assert isinstance(owner, SkipMiddle)
    return _normal(owner, shape, source) * (0.0 if owner.init == "zero" else 0.02)


def _gate_bias(owner: nn.Module, shape: torch.Size, source: torch.Generator) -> Tensor:
    assert isinstance(owner, SkipMiddle)
    return torch.full(shape, owner.start, dtype=torch.float64, device="cpu")


def _ones(owner: nn.Module, shape: torch.Size, source: torch.Generator) -> Tensor:
    return torch.ones(shape, dtype=torch.float32, device="cpu")


def _start(owner: nn.Module, shape: torch.Size, source: torch.Generator) -> Tensor:
    """`lambda_init`."""
    assert isinstance(owner, Lambdas)
    # float64, so that a float64 model starts at 0.1 and not at the nearest float32
    return torch.tensor(list(owner.start.values()), dtype=torch.float64, device="cpu")


RULES: tuple[Rule, ...] = (
    Rule("context.embed.*", "embed", _normal),
    Rule("blocks.*.attention.qkv", "matrix", _uniform),
    Rule("blocks.*.attention.out", "matrix", _zeros),
    Rule("blocks.*.attention.gate", "matrix", _neutral),  # all heads count one half
    Rule("context.smear.gate", "matrix", _neutral),
    Rule("blocks.*.attention.q", "matrix", _uniform),
    Rule("blocks.*.attention.kv", "matrix", _uniform),
    Rule("blocks.*.mlp.gate", "matrix", _uniform),
    Rule("blocks.*.mlp.up", "matrix", _uniform),
    Rule("blocks.*.mlp.down", "matrix", _zeros),
    Rule("*norm.weight", "scalar", _ones),
    Rule("gate.weight", "head", _gate_weight),
    Rule("gate.bias", "scalar", _gate_bias),
    Rule("head.scale", "scalar", _ones),
    Rule("blocks.*.mlp.fc", "matrix", _uniform),
    Rule("blocks.*.mlp.proj", "matrix", _zeros),
    Rule("readout.embed.*", "embed", _normal),
    Rule("readout.linear.*", "head", _uniform),  # as published: Adam, at the head's rate
    Rule("readout.narrow.*", "head", _uniform),
    Rule("readout.mlp.fc", "matrix", _uniform),
    Rule("readout.mlp.proj", "matrix", _zeros),
    Rule("head.weight", "head", _zeros),  # the first loss is ln(vocabulary)
    Rule("*.lambdas.weight", "scalar", _start),
)
"""Every parameter is covered by exactly one."""
