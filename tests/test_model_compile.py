"""What is compiled: one graph per kind of block and of sum, however many layers, windows and arms there are."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from model_recipes import AWAY, DOCUMENTS, EOT, OWNERS, randomised, recipe, tokens
from torch import Tensor

from skipsweep.config import Recipe
from skipsweep.model import context
from skipsweep.model.gpt import GPT

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",  # torch's tracer looks at it
    "ignore:.*torch.jit.*:DeprecationWarning",  # its compiler uses that
)

FLEX = DOCUMENTS | {"window_block": 128, "seq_len": 512}
"""Sequences of whole blocks, as FlexAttention takes them."""


class Graphs:
    """Stands for the compiler: counts the graphs that are handed to it, and runs them as they are."""

    def __init__(self) -> None:
        self.made: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.made.append(graph)
        return graph.forward

    def __len__(self) -> int:
        return len(self.made)

    def calling(self, name: str) -> int:
        """How many graphs call a function of this name."""
        return sum(any(name in str(node.target) for node in graph.graph.nodes) for graph in self.made)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """What GPT.compile_parts compiles in this test. Compiling more than torch's limit allows is an error, not eager."""
    import torch._dynamo

    found, compile_ = Graphs(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, backend=found, **options))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield found
    torch._dynamo.reset()


def compiled(cfg: Recipe) -> GPT:
    model = randomised(cfg)
    model.compile_parts()
    return model


def batch(cfg: Recipe, *opens: int) -> tuple[Tensor, Tensor]:
    ids, targets = tokens(cfg)
    ids = ids.clone()
    ids[:, list(opens)] = EOT
    return ids, targets


def train(model: GPT, cfg: Recipe, window: int = 2) -> None:
    model(*batch(cfg, 3), window=window).backward()


def graphs_of_depth(graphs: Graphs, **changes: Any) -> int:
    """Graphs of a pass, from an empty cache."""
    torch._dynamo.reset()
    graphs.made.clear()
    cfg = recipe(**DOCUMENTS, **changes)
    train(compiled(cfg), cfg)
    return len(graphs)


def test_graphs_do_not_grow_with_layers(graphs):
    """Attention with a value embedding, attention without, and the MLP alone."""
    assert graphs_of_depth(graphs) == graphs_of_depth(graphs, layers=8, no_attention=[1, 5])


def test_another_window_other_documents_and_other_values_compile_nothing(graphs):
    cfg = recipe(**DOCUMENTS)
    model = compiled(cfg)
    train(model, cfg, window=1)
    first = len(graphs)
    for window in (2, 3, 0, 4, 5, 1):
        train(model, cfg, window)
        model(*batch(cfg, 1, 5, window), window=window).backward()
    with torch.no_grad():
        for scalars in (p for name, p in model.named_parameters() if "lambdas" in name):
            scalars.add_(0.1)
    train(model, cfg)
    assert len(graphs) == first


def test_another_arm_compiles_its_own_sum_at_most(graphs):
    made = []
    for head, sources in (("last", ()), ("concat", (0, 1)), ("add", (0,)), ("add_renorm", (1,))):
        cfg = recipe(head, sources, seed=len(made), **DOCUMENTS)
        train(compiled(cfg), cfg)
        made.append(len(graphs))
    assert [n - made[0] for n in made] == [0, 0, 1, 1], "a sum of two, which add_renorm has in common with add"


def test_many_arms_in_training_and_validation_stay_compiled(graphs):
    """The fixture makes an error of what would run uncompiled, beyond torch's limit on graphs of one function."""
    arms = [("last", ()), ("add", (0, 1)), ("add", (0, 1, 2))]

    def all_of_them() -> int:
        for head, sources in arms:
            cfg = recipe(head, sources, **DOCUMENTS)
            model = compiled(cfg)
            train(model, cfg)
            with torch.no_grad():
                model(*batch(cfg, 3), window=2)
        return len(graphs)

    assert all_of_them() == all_of_them()


@pytest.mark.parametrize("head", OWNERS)
def test_an_owned_mlp_is_one_graph_whatever_the_window(graphs, head):
    """And so is what is left of the last block after its attention."""
    cfg = recipe(head, (0, 1), **DOCUMENTS)
    base = recipe(**DOCUMENTS)
    train(compiled(base), base)
    before = len(graphs)
    model = compiled(cfg)
    for window in (2, 1, 0):
        train(model, cfg, window)
    assert len(graphs) - before == 2


@pytest.mark.parametrize("head", ["add", "add_relu_linear", "backout", *OWNERS])
def test_what_is_compiled_computes_the_same(graphs, head):
    cfg = recipe(head, (0, 2, "input"), **AWAY, dtype="float64", **DOCUMENTS)
    models = randomised(cfg), compiled(cfg)
    losses = [model(*batch(cfg, 3), window=2) for model in models]
    assert graphs.calling("logsumexp") == 1, "loss and slope are one kernel"
    assert len(graphs) > 3
    for loss in losses:
        loss.backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-12)
    theirs = dict(models[0].named_parameters())
    for name, parameter in models[1].named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-12)


# -------------------------------------------------------------------------------------------------- with FlexAttention


@pytest.fixture
def flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take FlexAttention on CPU too. Run as it is it does not heed which blocks are seen: forward only, no numbers."""
    monkeypatch.setattr(context, "uses_flex", lambda *args: True)


@torch.no_grad()
def look(model: GPT, cfg: Recipe, window: int, *opens: int) -> None:
    model(*batch(cfg, *opens), window=window)


@pytest.mark.usefixtures("flex")
def test_with_flex_attention_every_kind_of_block_is_one_graph(graphs):
    """Three for 8 layers, and none for another window, other documents, or another arm."""
    cfg = recipe(layers=8, no_attention=[1, 5], **FLEX)
    model = compiled(cfg)
    look(model, cfg, 1, 3)
    first = len(graphs)
    assert graphs.calling("flex_attention") == 2
    assert graphs.calling("linear") == 3, "a block breaks into pieces"
    for window in (2, 3, 0, 4):
        look(model, cfg, window, 7, 200, 300 + window)
    other = recipe("concat", (0,), seed=3, **FLEX)
    look(compiled(other), other, 3, 9)
    assert len(graphs) == first


@pytest.mark.nightly  # compiles C++
@pytest.mark.usefixtures("flex")
def test_compiled_with_flex_attention_losses_are_those_of_scaled_dot_product_attention():
    """The real compiler, on CPU: forward only."""
    cfg = recipe("add", (1,), x_lambda=0.8, skip_lambda=-0.3, **FLEX)
    model = compiled(cfg)
    with torch.no_grad():
        for window in (1, 2, 3, 0):
            found = model(*batch(cfg, 7, 200, 300), reduction="none", window=window)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(context, "uses_flex", lambda *args: False)
                right = randomised(cfg)(*batch(cfg, 7, 200, 300), reduction="none", window=window)
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_kernels_are_tuned_where_that_is_asked_for() -> None:
    """For this process: one that tunes no longer says so too."""
    from torch._inductor import config as inductor

    with inductor.patch(coordinate_descent_tuning=False):
        for tune in (True, False):
            randomised(recipe()).compile_parts(tune)
            assert inductor.coordinate_descent_tuning is tune
