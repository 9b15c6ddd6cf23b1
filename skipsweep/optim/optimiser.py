"""One optimiser for all roles of parameters, shared among the processes of a run.

Every parameter has one owner, the process that keeps its state and updates it: gradients are summed up at the owner,
and the new value goes from there to the others. State is kept by parameter name, so that a run can resume on any number
of processes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from skipsweep import config
from skipsweep.config import Optim
from skipsweep.distributed import World
from skipsweep.optim import muon
from skipsweep.optim.adam import Adam
from skipsweep.optim.gradients import Gradients, at_least_float32
from skipsweep.optim.outer import Outer
from skipsweep.optim.owners import balance, newton_schulz_cost
from skipsweep.optim.schedule import peak_rates


class Batch(Protocol):
    """Parameters that are updated together."""

    names: tuple[str, ...]

    def update(self, gradients: Mapping[str, Tensor], step: int, lr_factor: float, halted: Tensor) -> None: ...

    def state(self) -> dict[str, Tensor]: ...


class Optimiser:
    """AdamW on everything, or Muon on the blocks' matrices and Adam on the rest; perhaps an outer optimiser around it.

    Of a parameter in bfloat16 the owner keeps the value in float32 (`master`); the parameter is that, rounded.
    """

    def __init__(
        self,
        optim: Optim,
        parameters: Mapping[str, nn.Parameter],
        roles: Mapping[str, str],
        world: World,
        compile: bool = False,
    ):
        """Take charge of `parameters`, which have their initial values, the same on every process.

        `roles[name]` is one of `embed`, `matrix`, `head`, `scalar`. `compile`: torch.compile Muon's arithmetic.
        """
        self.peak_lr = peak_rates(optim)
        assert isinstance(optim, config.AdamW | config.Muon)
        self._world, self._parameters, self._roles = world, dict(parameters), {n: roles[n] for n in parameters}
        self._owners = _owners(optim, parameters, roles, world.size)
        self._weights = {n: _weight(p, self._owners[n] == world.rank) for n, p in self._parameters.items()}
        self._gradients = Gradients(self._parameters, self._owners, world)
        # Adam's first: embeddings and head take longest to send, and Newton-Schulz longest to compute.
        self._batches: list[Batch] = self._adam(optim)
        if isinstance(optim, config.Muon):
            self._batches += self._muon(optim, torch.compile(muon.update, dynamic=False) if compile else muon.update)
        self._outer = None
        if optim.outer_every:
            self._outer = Outer(self._weights, optim.outer_every, optim.outer_lr, optim.outer_momentum)

    def _adam(self, optim: config.AdamW | config.Muon) -> list[Batch]:
        """One batch per role that Adam serves; weight decay is for the blocks' matrices."""
        served = {"embed", "head", "scalar"} if isinstance(optim, config.Muon) else set(self.peak_lr)
        batches: list[Batch] = []
        for role, lr in self.peak_lr.items():
            weights = {n: w for n, w in self._weights.items() if self._roles[n] == role}
            if role in served and weights:
                decay = optim.weight_decay if role == "matrix" else 0.0
                batches.append(Adam(weights, lr, (optim.beta1, optim.beta2), optim.eps, decay))
        return batches

    def _muon(self, optim: config.Muon, update: Callable[..., None]) -> list[Batch]:
        """One batch per shape (and precision, and weight decay) of matrices."""
        alike = defaultdict(dict)
        for name, weight in self._weights.items():
            if self._roles[name] == "matrix":
                decay_factor = optim.mlp_decay_factor if ".mlp." in name else 1.0
                alike[weight.shape[-2:], self._parameters[name].dtype, decay_factor][name] = weight
        return [muon.Muon(optim, weights, dtype, factor, update) for (_, dtype, factor), weights in alike.items()]

    # ------------------------------------------------------------------------------------------------------- the step

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of one micro-batch's loss (scalar), and on the `last` of a step send them to their owners.

        Losses are weighted so that their sum over micro-batches and processes is the batch's mean loss.
        """
        self._gradients.backward(loss, last)

    def grad_norm(self) -> Tensor:
        """L2 norm of the whole gradient (float64 scalar), the same bits on every process. Waits for communication."""
        return self._gradients.norm()

    @torch.no_grad()
    def step(self, step: int, lr_factor: float, halted: Tensor) -> None:
        """Apply and drop the gradients: the update from `step` (0-based) to `step + 1`, at `lr_factor` times the peak
        rates. Where `halted` (scalar) is 1 nothing changes; the host is not asked.
        """
        gradients = self._gradients.own()
        works = []
        for batch in self._batches:
            batch.update(gradients, step, lr_factor, halted)
            if self._outer:
                self._outer.update(batch.names, step, halted)
            works += self._publish(batch.names)
        self._gradients.drop()
        for work in works:
            work.wait()

    def _publish(self, names: Iterable[str]) -> list[dist.Work]:
        """Give the parameters their new values, everywhere; what is returned has yet to be waited for."""
        works = []
        for name in names:
            parameter, weight = self._parameters[name].detach(), self._weights[name]
            if not weight.is_meta and weight.dtype != parameter.dtype:
                parameter.copy_(weight)
            if self._world.size > 1:
                works.append(dist.broadcast(parameter, self._owners[name], async_op=True))
        return works

    def learning_rates(self, lr_factor: float) -> dict[str, float]:
        """`lr/<role>` -> rate, for the roles that have parameters."""
        used = set(self._roles.values())
        return {f"lr/{role}": lr * lr_factor for role, lr in self.peak_lr.items() if role in used}

    # --------------------------------------------------------------------------------------------------------- state

    def state(self) -> dict[str, Tensor]:
        """`<parameter>/<key>` -> tensor, complete on rank 0 and empty elsewhere. Every process must call it.

        What others own arrives in host memory; rank 0's own are the tensors in use, not copies.
        """
        found = {}
        for key, value in sorted(self._tensors().items()):
            value = self._fetch(value, self._owners[key.rpartition("/")[0]])
            if self._world.is_leader:
                found[key] = value
        return found

    def _fetch(self, value: Tensor, owner: int) -> Tensor:
        """The owner's value, on rank 0."""
        if owner == 0:
            return value
        # A broadcast where a message to one would do: no further communicators, for what takes a second per checkpoint.
        box = (
            value
            if owner == self._world.rank
            else torch.empty(value.shape, dtype=value.dtype, device=self._world.device)
        )
        dist.broadcast(box, owner)
        return box.cpu() if self._world.is_leader else box

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what rank 0 got from `state`, whatever the number of processes then; the parameters themselves are
        set elsewhere.

        Raises KeyError if it belongs to other parameters or another optimiser.
        """
        own = self._tensors()
        if odd := sorted(own.keys() ^ state.keys()):
            raise KeyError(f"the optimiser's state belongs to other parameters: {', '.join(odd[:5])}")
        for key, value in own.items():
            if not value.is_meta:
                value.copy_(state[key])

    def _tensors(self) -> dict[str, Tensor]:
        """The whole state; meta tensors where another process has it."""
        masters = {n: w for n, w in self._weights.items() if w.dtype != self._parameters[n].dtype}
        found = {f"{name}/master": weight for name, weight in masters.items()}
        for part in [*self._batches, *([self._outer] if self._outer else [])]:
            found |= part.state()
        return found


def _owners(
    optim: config.AdamW | config.Muon, parameters: Mapping[str, nn.Parameter], roles: Mapping[str, str], ranks: int
) -> dict[str, int]:
    """Parameter -> rank; matrices that Muon serves and the rest are each shared out evenly, by what they cost."""
    is_muon = {n: isinstance(optim, config.Muon) and roles[n] == "matrix" for n in parameters}
    products = {n: newton_schulz_cost(p.shape) for n, p in parameters.items() if is_muon[n]}
    sizes = {n: p.numel() for n, p in parameters.items() if not is_muon[n]}
    return balance(products, ranks) | balance(sizes, ranks)


def _weight(parameter: nn.Parameter, is_own: bool) -> Tensor:
    """What an optimiser works on: the parameter itself, or a copy in float32 if it has less. A meta tensor stands for
    what is another process's."""
    dtype = at_least_float32(parameter.dtype)
    if not is_own:
        return torch.empty_like(parameter, dtype=dtype, device="meta", requires_grad=False)
    return parameter.detach().to(dtype)
