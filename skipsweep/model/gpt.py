"""The trunk: a decoder-only transformer whose mechanisms all sit behind seams.

Legend: B batch, T time, D dim, V rows of the head.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skipsweep.config import Recipe
from skipsweep.model import lambdas
from skipsweep.model.attention import keep_masks_out_of_graphs
from skipsweep.model.blocks import Block
from skipsweep.model.context import TokenContext
from skipsweep.model.gate import build_gate
from skipsweep.model.head import Head
from skipsweep.model.init import initialise
from skipsweep.model.inject import build_inject
from skipsweep.model.lambdas import Lambdas
from skipsweep.model.llama import LlamaBlock
from skipsweep.model.readout import build_readout
from skipsweep.model.seams import Context, Gate, Inject, Outputs, Readout
from skipsweep.model.shape import has_weighted_norms, head_rows
from skipsweep.model.skipping import open_only
from skipsweep.model.weighted import WeightedSum


class GPT(nn.Module):
    """Embedding, blocks, readout and head. It knows no mechanism: each is a module behind a seam (`seams.py`)."""

    def __init__(
        self,
        context: TokenContext,
        inject: Inject,
        gate: Gate,
        blocks: Sequence[nn.Module],
        readout: Readout,
        head: Head,
    ) -> None:
        super().__init__()
        self.context = context
        self.inject = inject
        self.gate = gate
        self.blocks = nn.ModuleList(blocks)
        self.readout = readout
        self.head = head
        self.kept_layers = inject.needs | readout.needs
        _check_labels(self)

    def forward(
        self, ids: Tensor, targets: Tensor, reduction: str = "mean", window: int = 0, skip: bool = False
    ) -> Tensor:
        """Cross-entropy in nats of `targets` (B, T) after `ids` (B, T), in float32 (float64 for a float64 model).

        `reduction`: `mean` or `sum` over all tokens, or `none` for one loss per token (B, T). `window`: blocks that
        queries see in the layers with the long window (`window.window_blocks`), 0: all. `skip`: at evaluation blocks
        compute only what their gates leave open, where the gates allow it (`Gate.skips`).
        """
        return self.head.loss(self.features(ids, window, skip), targets, reduction)

    def logits(self, ids: Tensor, window: int = 0, skip: bool = False) -> Tensor:
        """Logits (B, T, V) of the token after each of `ids` (B, T), whole: for inspection and small vocabularies.

        V is the head's: where it is rounded up, the ids beyond the vocabulary stand for nothing.
        """
        return self.head(self.features(ids, window, skip))

    def features(self, ids: Tensor, window: int = 0, skip: bool = False) -> Tensor:
        """What the head sees (B, T, readout.width)."""
        return self.features_of(self.context(ids, window), skip)

    def features_of(self, ctx: Context, skip: bool = False) -> Tensor:
        """`features` of tokens whose context is known."""
        x, outputs, gate_state = ctx.x00, Outputs(), list[Tensor]()
        skip = skip and self.gate.skips and not self.training
        for i, block in enumerate(self.blocks):
            g = self.gate(i, x, gate_state)
            x, layer = self.inject(i, x, ctx, outputs), self.gate.bias_attention(ctx.layers[i], g)
            x = block(x, g, layer) if g is None or not skip else open_only(block, x, g, layer, ctx.masks[i])
            if i in self.kept_layers:
                outputs[i] = x
        return self.readout(self.inject.trunk_output(x, ctx, outputs), outputs, ctx)

    def lambdas(self) -> dict[str, float]:
        """Label -> value of every learned scalar of every seam; one transfer to the host."""
        return lambdas.read(_lambdas_of(self))

    def compile_parts(self, tune: bool = False) -> None:
        """Compile what is repeated, block by block and sum by sum, and not the whole. `tune`: try out block sizes for
        every kernel, in the whole process.

        All layers of a kind share one graph, and so do all arms, which differ in what stands around the blocks.
        """
        _prepare_compiler(tune)
        for part in [*self.blocks, *self.readout.parts_to_compile()]:
            part.compile(dynamic=False)
        self.head.compile_kernel()
        for module in self.modules():
            if isinstance(module, WeightedSum):
                module.compile_kernel()


def build(cfg: Recipe, device: str | torch.device = "cpu") -> GPT:
    """The model of a canonical recipe (or of a run's configuration), initialised from `cfg.seed`.

    On the meta device it has shapes only: `to_empty`, then `init.initialise`. Raises ValueError where planning has not
    made the recipe canonical or not filled in the vocabulary.
    """
    if cfg.data.vocab_size < 1:
        raise ValueError("data.vocab_size is 0: it is filled in when planning")
    with torch.device(device):
        model = _assemble(cfg)
    if torch.device(device).type != "meta":
        initialise(model, cfg.seed, cfg.model.init_std)
    return model


def _assemble(cfg: Recipe) -> GPT:
    """The modules, with uninitialised parameters on the current default device."""
    dtype = getattr(torch, cfg.model.dtype)
    readout = build_readout(cfg, dtype)
    return GPT(
        context=TokenContext(cfg, dtype),
        inject=build_inject(cfg, dtype),
        gate=build_gate(cfg, dtype),
        blocks=_blocks(cfg, dtype, readout.owns_last_mlp),
        readout=readout,
        head=_head(cfg, readout.width, dtype),
    )


BLOCKS: dict[str, type[Block] | type[LlamaBlock]] = {"speedrun": Block, "llama": LlamaBlock}
"""Choice of `model.block` -> module."""


def _head(cfg: Recipe, inputs: int, dtype: torch.dtype) -> Head:
    model = cfg.model
    return Head(inputs, head_rows(cfg), model.softcap, dtype, model.softcap_curve, has_weighted_norms(model))


def _blocks(cfg: Recipe, dtype: torch.dtype, without_last_mlp: bool) -> list[nn.Module]:
    without = [*cfg.model.no_mlp, *([cfg.model.layers - 1] if without_last_mlp else [])]
    block = BLOCKS[cfg.model.block]
    return [block(cfg.model, i, dtype, has_mlp=i not in without) for i in range(cfg.model.layers)]


def _prepare_compiler(tune: bool) -> None:
    import torch._dynamo  # takes seconds, which runs that compile nothing do without
    from torch._inductor import config as inductor

    # Three kinds of block and four or more of sums, in training and in validation, for every arm of a process. Beyond
    # the limit (8 as torch has it) a graph runs uncompiled, with no more than a line in the log.
    torch._dynamo.config.recompile_limit = 64
    inductor.coordinate_descent_tuning = tune
    keep_masks_out_of_graphs()


def _lambdas_of(model: nn.Module) -> list[Lambdas]:
    return [module for module in model.modules() if isinstance(module, Lambdas)]


def _check_labels(model: nn.Module) -> None:
    """Raise ValueError where two mechanisms would be logged under one label."""
    counts = Counter(label for vector in _lambdas_of(model) for label in vector.start)
    twice = [label for label, n in counts.items() if n > 1]
    if twice:
        raise ValueError(f"labels of learned scalars used twice: {', '.join(twice)}")
