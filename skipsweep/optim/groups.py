"""One optimiser for all roles of parameters; its state is kept by parameter name, so that a run can resume anywhere."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skipsweep.config import AdamW, Optim


class Optimiser:
    """AdamW with a learning rate per role of parameter (`embed`, `matrix`, `head`, `scalar`).

    A step is skipped on the device, without asking the host, where `halted` is 1.
    """

    def __init__(self, optim: Optim, parameters: Mapping[str, nn.Parameter], roles: Mapping[str, str]):
        if not isinstance(optim, AdamW):
            raise TypeError(f"no such optimiser: {optim}")
        self.peak_lr = {"embed": optim.embed_lr, "matrix": optim.lr, "head": optim.head_lr, "scalar": optim.scalar_lr}
        self._names = {role: [n for n in parameters if roles[n] == role] for role in self.peak_lr}
        self._parameters = dict(parameters)
        self._adamw = torch.optim.AdamW(
            [
                {
                    "params": [parameters[n] for n in names],
                    "lr": self.peak_lr[role],
                    "weight_decay": optim.weight_decay if role == "matrix" else 0.0,
                }
                for role, names in self._names.items()
                if names
            ],
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            fused=True,
        )

    def step(self, lr_factor: float, halted: Tensor) -> None:
        """Apply the gradients at `lr_factor` times the peak rates; nothing changes where `halted` (scalar) is 1."""
        roles = [role for role, names in self._names.items() if names]
        for role, group in zip(roles, self._adamw.param_groups, strict=True):
            group["lr"] = self.peak_lr[role] * lr_factor
        # GradScaler's protocol: the fused kernel leaves parameters, moments and step count alone where found_inf is 1.
        self._adamw.found_inf = halted  # type: ignore[attr-defined]
        self._adamw.grad_scale = None  # type: ignore[attr-defined]
        self._adamw.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def learning_rates(self, lr_factor: float) -> dict[str, float]:
        """`lr/<role>` -> rate, for the roles that have parameters."""
        return {f"lr/{role}": self.peak_lr[role] * lr_factor for role, names in self._names.items() if names}

    def state(self) -> dict[str, Tensor]:
        """`<parameter>/<moment>` -> tensor."""
        return {
            f"{name}/{key}": value
            for name, parameter in self._parameters.items()
            for key, value in self._adamw.state.get(parameter, {}).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned.

        Raises KeyError if it belongs to other parameters.
        """
        self._adamw.state.clear()
        for key, value in state.items():
            name, moment = key.rsplit("/", 1)
            entry: dict[str, Any] = self._adamw.state[self._parameters[name]]
            entry[moment] = value.to(self._parameters[name].device).clone()
