"""Readouts: formulas, sizes, where gradients go and do not, an embedding of its own, what cannot be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from model_recipes import AWAY, OWNERS, randomised, recipe, tokens
from runs import LAMBDAS, configuration
from torch import Tensor, nn

from skipsweep import config as c
from skipsweep.errors import UserError
from skipsweep.model.count import flops_per_token, parameters, total
from skipsweep.model.gpt import GPT, build
from skipsweep.model.init import parameter_roles
from skipsweep.model.lambdas import Lambdas
from skipsweep.model.readout import READOUTS
from skipsweep.model.readout_specs import NAMED, SPECS, matrices
from skipsweep.model.seams import Context, Readout
from skipsweep.model.shape import scalars
from skipsweep.sweep import identity
from skipsweep.sweep.canonical import canonical_form
from skipsweep.sweep.entry import from_command_line
from skipsweep.sweep.validate import validate

D = 16
LAYERS = (0, 2)
SOURCES = (0, 2, "input", "extra")
WEIGHTS: dict[str, Any] = {"x_lambda": 0.8, "skip_lambda": [-0.3, 0.1, 0.5, -0.7], "backout": [0.4, 0.2]}


def unit(a: Tensor) -> Tensor:
    return a / a.square().mean(-1, keepdim=True).sqrt()


class Seen:
    """A readout of a float64 model, and something for it to see: a long stream, two layers, x00, and tokens."""

    def __init__(self, head: str, sources: tuple = SOURCES, **changes: Any) -> None:
        given = {k: v[: len(sources)] if isinstance(v, list) else v for k, v in WEIGHTS.items()}
        self.model = randomised(recipe(head, sources, dtype="float64", **given, **changes))
        self.readout: Any = self.model.readout
        x, a, b, x00 = torch.randn(4, 2, 3, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
        self.x, self.h, self.ids = 20 * x, {0: 3 * a, 2: 7 * b}, torch.tensor([[1, 2, 3], [4, 1, 0]])
        self.x00 = unit(x00)
        self.extra = unit(self.readout.embed["extra"][self.ids]) if "extra" in sources else None

    def features(self) -> Tensor:
        return self.readout(self.x, self.h, Context((self.x00,), [], self.ids))


# ------------------------------------------------------------------------------------------------------------ formulas

SUMS = {
    "add": lambda h: unit(h),
    "add_unnormed": lambda h: h,
    "add_detached": lambda h: unit(h),
    "add_fixed_x": lambda h: unit(h),
    "add_relu": lambda h: unit(h.clamp(min=0)),
    "add_tanh": lambda h: unit(h.tanh()),
}
"""What becomes of a source before its scalar; embeddings are normed already, so that unit() leaves them alone."""


@pytest.mark.parametrize("head", SUMS)
def test_sums_are_their_formulas(head: str) -> None:
    sources = SOURCES if "extra" in SPECS[head].named else SOURCES[:3]
    seen = Seen(head, sources)
    each = [seen.h[0], seen.h[2], seen.x00, seen.extra][: len(sources)]
    weights = [1.0 if head == "add_fixed_x" else 0.8, *WEIGHTS["skip_lambda"]]
    expected = unit(seen.x) * weights[0]
    for weight, h in zip(weights[1:], each, strict=False):
        expected = expected + SUMS[head](h) * weight
    torch.testing.assert_close(seen.features(), expected)


def test_relu_and_linear_has_a_matrix_per_source() -> None:
    seen = Seen("add_relu_linear")
    expected = unit(seen.x) * 0.8
    for source, h, weight in zip(
        SOURCES, (seen.h[0], seen.h[2], seen.x00, seen.extra), WEIGHTS["skip_lambda"], strict=True
    ):
        expected = expected + weight * unit(h.clamp(min=0) @ seen.readout.linear[str(source)].T)
    torch.testing.assert_close(seen.features(), expected)


def test_backout_subtracts_before_anything_is_normed() -> None:
    seen = Seen("backout", LAYERS)
    torch.testing.assert_close(seen.features(), unit(seen.x - 0.4 * seen.h[0] - 0.2 * seen.h[2]))


def test_concat_takes_an_embedding_of_its_own() -> None:
    seen = Seen("concat", (2, "input", "extra", "last"))
    expected = torch.cat((unit(seen.x), unit(seen.h[2]), seen.x00, seen.extra, unit(seen.x)), -1)
    torch.testing.assert_close(seen.features(), expected)


ALL = (0, 2, "input", "extra", "last")


@pytest.mark.parametrize("head", OWNERS)
@pytest.mark.parametrize("widen", [False, True])
@pytest.mark.parametrize("each", [False, True])
def test_the_last_mlp_sees_all_side_by_side(head: str, widen: bool, each: bool) -> None:
    seen = Seen(head, ALL, widen_head=widen, norm_each=each)
    beside = [seen.h[0], seen.h[2], seen.x00, seen.extra, seen.x]
    if head == "concat_mlp_narrow":
        beside = [h @ seen.readout.narrow[str(source)].T for source, h in zip(ALL, beside, strict=True)]
    widths = [D, *(h.shape[-1] for h in beside)]

    def normed(a: Tensor) -> Tensor:
        return torch.cat([unit(part) for part in a.split(widths, -1)], -1) if each else unit(a)

    z = torch.cat([seen.x, *beside], -1)
    y = (normed(z) @ seen.readout.mlp.fc.T).clamp(min=0) ** 2 @ seen.readout.mlp.proj.T
    expected = normed(z + y) if widen else unit(seen.x + y)
    torch.testing.assert_close(seen.features(), expected)
    assert seen.readout.width == (sum(widths) if widen else D)
    assert widths[1:] == 5 * [6 if head == "concat_mlp_narrow" else D]


def test_normed_all_at_once_an_embedding_is_drowned() -> None:
    """Why `norm_each`: what a long stream leaves of x00."""
    shares = []
    for each in (False, True):
        seen = Seen("concat_mlp", ("input",), norm_each=each)
        seen.x = 5 * seen.x
        z = seen.readout.mlp._normed(torch.cat((seen.x, seen.x00), -1))
        shares.append(z[..., D:].square().sum() / z.square().sum())
    assert shares[0] < 1e-3
    assert shares[1].item() == pytest.approx(0.5)


# --------------------------------------------------------------------------------------------------------------- sizes


def size(head: str, count: int, dim: int, ratio: float, **fields: Any) -> c.Recipe:
    trunk = {"layers": 15, "dim": dim, "heads": 1, "mlp_ratio": ratio}
    return recipe(head, range(count), plain=True, **trunk, **fields)


@settings(deadline=None, max_examples=150)
@given(
    head=st.sampled_from(OWNERS),
    count=st.integers(1, 14),
    dim=st.integers(4, 64).map(lambda k: 16 * k),
    ratio=st.sampled_from([1.0, 2.0, 4.0]),
    width=st.integers(1, 300),
    widen=st.booleans(),
)
def test_readout_and_last_mlp_have_a_blocks_parameters(head, count, dim, ratio, width, widen):
    narrow = {"width": width} if head == "concat_mlp_narrow" else {}
    cfg = size(head, count, dim, ratio, widen_head=widen, **narrow)
    beside = width if narrow else dim
    channels = dim + count * beside
    wanted = 2 * dim * round(ratio * dim) - (count * dim * width if narrow else 0)
    outputs = channels if widen else dim
    assume(wanted >= 8 * (channels + outputs))
    shapes = matrices(cfg)
    hidden = shapes["mlp.fc"][0]
    assert hidden % 8 == 0
    assert (shapes["mlp.fc"], shapes["mlp.proj"]) == ((hidden, channels), (outputs, hidden))
    base, arm = parameters(size("last", 0, dim, ratio)), parameters(cfg)
    change = arm["blocks.mlp"] + arm["readout"] - base["blocks.mlp"]
    assert abs(change) <= 4 * (channels + outputs)
    assert arm["head"] - base["head"] == (32 * count * beside if widen else 0)


MEDIUM = {"layers": 16, "dim": 1024, "heads": 8, "mlp_ratio": 4.0, "vocab_size": 50304, "plain": True}


@pytest.mark.parametrize(
    ("count", "widen", "hidden", "off"),
    [(1, False, 2728, -8192), (2, False, 2048, 0), (3, False, 1640, 8192), (1, True, 2048, 0), (2, True, 1368, 16384)],
)
def test_hidden_channels_of_the_medium_track(count: int, widen: bool, hidden: int, off: int) -> None:
    cfg = recipe("concat_mlp", range(count), widen_head=widen, **MEDIUM)
    counts, base = parameters(cfg), parameters(recipe(**MEDIUM))
    assert matrices(cfg)["mlp.fc"][0] == hidden
    assert counts["readout"] + counts["blocks.mlp"] - base["blocks.mlp"] == off
    assert counts["readout"] == 2 * 1024 * 4096 + off


def test_figures_of_the_published_heads() -> None:
    """Scripts 30xx: the MLP's parameters equal, the head's doubled; script 6000: the MLP's a third."""
    base, full = parameters(recipe(**MEDIUM)), parameters(recipe("concat_mlp", (11,), widen_head=True, **MEDIUM))
    assert total(full) - total(base) == full["head"] - base["head"] == 1024 * 50304
    cfg = recipe("concat_mlp_narrow", (12,), widen_head=True, hidden=1152, width=128, **MEDIUM)
    assert parameters(cfg)["readout"] == 2 * 1152**2 + 128 * 1024
    assert parameters(cfg)["head"] == 50304 * 1152


@pytest.mark.parametrize(
    ("head", "sources", "scalars_and_tables", "in_matrices"),
    [
        ("add", LAYERS, 3, 0),
        ("add", (0, "extra"), 3 + 32 * D, 0),
        ("add_renorm", LAYERS, 3, 0),
        ("add_unnormed", LAYERS, 3, 0),
        ("add_detached", LAYERS, 3, 0),
        ("add_fixed_x", LAYERS, 2, 0),
        ("add_relu", LAYERS, 3, 0),
        ("add_tanh", LAYERS, 3, 0),
        ("add_relu_linear", LAYERS, 3, 2 * D * D),
        ("backout", LAYERS, 2, 0),
        ("concat", (0, "extra"), 32 * D, 2 * D * 35),
    ],
)
def test_what_a_head_adds(head: str, sources: tuple, scalars_and_tables: int, in_matrices: int) -> None:
    """Parameters; and 6 operations per token for each that stands in a matrix."""
    base, cfg = recipe(), recipe(head, sources)
    assert total(parameters(cfg)) - total(parameters(base)) == scalars_and_tables + in_matrices
    assert total(flops_per_token(cfg)) - total(flops_per_token(base)) == 6 * in_matrices


# ------------------------------------------------------------------------------------------------------------ the trunk


@pytest.mark.parametrize("head", READOUTS)
def test_a_block_has_its_mlp_unless_the_readout_has_it(head: str) -> None:
    model = build(recipe(head, () if head == "last" else (1,)))
    owned = head in OWNERS
    assert model.readout.owns_last_mlp == SPECS[head].owns_last_mlp == owned
    assert [block.mlp is None for block in model.blocks] == [False, False, False, owned]
    assert build(recipe(head)).blocks[3].mlp is not None, "without sources it is the baseline"


@pytest.mark.parametrize("head", OWNERS)
def test_the_readout_gets_the_stream_after_the_last_attention(head: str) -> None:
    model, ids = randomised(recipe(head, (1,), dtype="float64")), tokens(recipe())[0]
    ends: list[Tensor] = []
    model.blocks[3].register_forward_hook(lambda _m, args, x: ends.extend((args[0], x)))
    got: list[Tensor] = []
    model.readout.register_forward_pre_hook(lambda _m, args: got.append(args[0]))
    ctx = model.context(ids, 0)
    model.features(ids)
    attention = model.blocks[3].attention
    assert attention is not None
    assert got[0] is ends[1]
    torch.testing.assert_close(ends[1], ends[0] + attention(ends[0], ctx.layers[3]))


@pytest.mark.parametrize("head", OWNERS)
def test_a_last_block_without_attention_too_leaves_the_stream_alone(head: str) -> None:
    changes: dict[str, Any] = {"no_attention": [3], "embeddings": c.Embeddings(mix=True)}
    model, batch = randomised(recipe(head, (1,), **changes)), tokens(recipe())
    assert not list(model.blocks[3].parameters())
    model(*batch).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("head", OWNERS)
def test_an_owned_mlp_starts_as_the_trunks_do_with_nothing(head: str) -> None:
    """What leads out of it is 0: the stream is as without the MLP."""
    model, ids = build(recipe(head, (1, "input"))), tokens(recipe())[0]
    ends: list[Tensor] = []
    model.blocks[3].register_forward_hook(lambda _m, _a, x: ends.append(x))
    features = model.features(ids)
    torch.testing.assert_close(features, unit(ends[-1]), rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- gradients


class Constant(Readout):
    """norm(x) * weight + a constant."""

    def __init__(self, weight: float, constant: Tensor) -> None:
        super().__init__()
        self.weight, self.constant = weight, constant

    def forward(self, x: Tensor, outputs: dict[int, Tensor], ctx: Context) -> Tensor:
        return F.rms_norm(x, (D,), eps=torch.finfo(x.dtype).eps) * self.weight + self.constant


def gradients(model: GPT, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    model(*batch).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and "readout" not in name}


@pytest.mark.parametrize("head", ["add_detached", "add"])
def test_detached_sources_send_no_gradient_into_the_trunk(head: str) -> None:
    """The trunk's gradients are those of a model in which the skips are a constant; with `add` they are not."""
    batch, sources = tokens(recipe()), (0, 2, "input")
    model = randomised(recipe(head, sources, dtype="float64", **AWAY))
    with torch.no_grad():
        model.readout.lambdas.weight[0] = 0.0
        constant = model.features(batch[0])
        model.readout.lambdas.weight[0] = AWAY["x_lambda"]
    ours = gradients(model, batch)
    fixed = randomised(recipe(dtype="float64", **AWAY))
    fixed.readout = Constant(AWAY["x_lambda"], constant)
    theirs = gradients(fixed, batch)
    assert ours.keys() == theirs.keys()
    alike = [torch.allclose(ours[name], theirs[name], rtol=1e-9, atol=1e-14) for name in ours if name != "head.weight"]
    assert all(alike) if head == "add_detached" else not any(alike[:3])
    assert model.readout.lambdas.weight.grad.all(), "the scalars themselves learn"


def test_a_fixed_weight_is_no_parameter() -> None:
    model = build(recipe("add_fixed_x", (0, 2), x_lambda=0.3))
    assert [name for name in model.lambdas() if name.startswith(("lambda/x", "lambda/skip"))] == [
        "lambda/skip/0",
        "lambda/skip/2",
    ]
    assert len(model.readout.lambdas.weight) == 2


def test_a_matrix_learns_once_its_scalar_has_moved() -> None:
    slopes = []
    for skip in (0.0, 0.3):
        model = randomised(recipe("add_relu_linear", (1,), skip_lambda=skip))
        model(*tokens(recipe())).backward()
        slopes.append((model.readout.linear["1"].grad.any().item(), model.readout.lambdas.weight.grad.all().item()))
    assert slopes == [(False, True), (True, True)]


@pytest.mark.parametrize("head", OWNERS)
def test_layers_learn_through_the_last_mlp(head: str) -> None:
    """Of the block two before the last, what is not seen by later blocks is seen by the MLP."""
    batch = tokens(recipe())
    grads = [gradients(randomised(recipe(head, (k,), dtype="float64")), batch)["blocks.2.mlp.proj"] for k in (2, 0)]
    assert all(grad.any() for grad in grads)
    assert not torch.allclose(*grads)


# ---------------------------------------------------------------------------------------------------- an own embedding


def test_an_own_embedding_is_read_by_the_readout_alone() -> None:
    model, ids = randomised(recipe("add", (1, "extra"), **AWAY)), tokens(recipe())[0]
    ends: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _a, x: ends.append(x))
    before = model.features(ids)
    with torch.no_grad():
        model.readout.embed["extra"][ids[0, 0]].mul_(-1)
    after = model.features(ids)
    assert all(torch.equal(*pair) for pair in zip(ends[:4], ends[4:], strict=True))
    assert torch.equal(before.ne(after).any(-1), ids == ids[0, 0])
    torch.testing.assert_close(before[0, 0] - after[0, 0], 2 * -0.3 * unit(-model.readout.embed["extra"][ids[0, 0]]))


def test_an_own_embedding_starts_as_embeddings_do_and_as_none_of_the_others() -> None:
    model = build(recipe("concat", (1, "extra"), vocab_size=2000, dim=32))
    own = dict(model.named_parameters())["readout.embed.extra"]
    assert own.shape == (2000, 32)
    assert parameter_roles(model)["readout.embed.extra"] == "embed"
    assert own.std().item() == pytest.approx(1, abs=0.02)
    assert not any(torch.equal(own, p) for n, p in model.named_parameters() if n.startswith("context.embed"))


HEADS: tuple[tuple[str, tuple], ...] = (
    ("add", (1, "extra")),
    ("add_relu_linear", (1, 2, "input")),
    ("concat_mlp_narrow", (0, 1, "extra")),
    ("concat_mlp", (0, 1, "last")),
)


@pytest.mark.parametrize(("head", "sources"), HEADS)
def test_another_list_of_sources_moves_no_draw(head: str, sources: tuple) -> None:
    """Matrices and embeddings of the readout are drawn by the name of their source."""
    fixed = {"hidden": 8} if head in OWNERS else {}
    alone, all_ = (dict(build(recipe(head, s, **fixed)).named_parameters()) for s in (sources[1:2], sources))
    shared = [n for n in alone if alone[n].shape == all_[n].shape and not n.endswith("lambdas.weight")]
    assert all(torch.equal(alone[name], all_[name]) for name in shared)
    expected = {"add_relu_linear": "readout.linear.2", "concat_mlp_narrow": "readout.narrow.1"}.get(head)
    assert expected is None or expected in shared


@pytest.mark.parametrize("head", ["add_relu_linear", *OWNERS])
def test_matrices_start_as_the_blocks_and_maps_are_trained_as_the_head(head: str) -> None:
    """Scripts 7012 and 6000: Adam at the head's rate has what leads from a source, Muon the MLP."""
    model = build(recipe(head, (0, 1), dim=64, heads=2))
    roles, found = parameter_roles(model), 0
    for name, p in model.readout.named_parameters():
        if not name.endswith("lambdas.weight"):
            assert roles[f"readout.{name}"] == ("matrix" if name.startswith("mlp.") else "head")
            bound = 3**0.5 * 0.5 / p.shape[1] ** 0.5
            assert p.abs().max() <= bound
            assert (p.abs().max() > 0.9 * bound) == (name != "mlp.proj")
            found += 1
    assert found == {"add_relu_linear": 2, "concat_mlp": 2, "concat_mlp_narrow": 4}[head]


# ------------------------------------------------------------------------------------------------------------- scalars


def test_backouts_scalars_carry_their_layer() -> None:
    cfg = recipe("backout", (0, 2, "input"), backout=[0.5, 0.25, 0.125])
    expected = {"lambda/backout/0": 0.5, "lambda/backout/2": 0.25, "lambda/backout/input": 0.125}
    model = build(cfg)
    assert isinstance(model.readout.lambdas, Lambdas)
    assert model.readout.lambdas.start == expected
    assert {k: v for k, v in model.lambdas().items() if k in expected} == expected
    assert list(model.lambdas()) == list(scalars(cfg))


def planned(*overrides: str) -> c.RunConfig:
    request = from_command_line(["data=synthetic", *overrides])
    config = request.composer(request.overrides)
    validate(config)
    return canonical_form(config, config.data)


def test_shipped_choices_start_where_the_published_ones_did() -> None:
    run = planned("head_type=backout", "skip_layers=5")
    assert (run.lambda_init.backout, run.lambda_init.x_lambda) == (0.5, 1.0)
    assert planned("head_type=add", "skip_layers=5").lambda_init.backout == 0.0
    narrow = planned("head_type=concat_mlp_narrow", "skip_layers=5").head_type
    assert narrow == c.ConcatMLPNarrow(width=128, widen_head=False, norm_each=True)
    assert planned("head_type=concat_mlp", "skip_layers=5").head_type == c.ConcatMLP(norm_each=True)


# -------------------------------------------------------------------------------------------------- what is planned how


def canonical(layers: Any, head: c.HeadType, **changes: Any) -> c.RunConfig:
    config = configuration(Path("/nowhere"), Path("/nowhere"), **changes)
    config = replace(config, skip_layers=c.SkipLayers(layers), head_type=head)
    validate(config)
    return canonical_form(config, config.data)


def test_named_sources_follow_the_layers_in_one_order() -> None:
    run = canonical(["last", "extra", 1, "input", 0], c.Concat())
    assert run.skip_layers.layers == [0, 1, "input", "extra", "last"]
    assert NAMED == ("input", "extra", "last")


def test_values_per_source_follow_their_source() -> None:
    init = replace(LAMBDAS, backout=[0.5, 0.25, 0.125])
    run = canonical(["input", 1, 0], c.Backout(), lambda_init=init)
    assert (run.skip_layers.layers, run.lambda_init.backout) == ([0, 1, "input"], [0.125, 0.25, 0.5])
    assert run.lambda_init.skip_lambda == run.lambda_init.x_lambda - 1 == 0.0


def test_a_start_value_that_a_head_has_not_is_neutral() -> None:
    init = replace(LAMBDAS, x_lambda=0.5, skip_lambda=0.25, backout=0.125)
    used = {}
    for name, cls in c.choices(c.HeadType).items():
        head = cls(**({"width": 2} if cls is c.ConcatMLPNarrow else {}))
        found = canonical([] if name == "last" else [0], head, lambda_init=init).lambda_init
        used[name] = {k for k in ("x_lambda", "skip_lambda", "backout") if getattr(found, k) == getattr(init, k)}
    assert used == {head: set(spec.lambdas) for head, spec in SPECS.items()}


def test_what_is_left_of_unnormed_without_layers_is_add() -> None:
    unnormed, add = (canonical(["input", "extra"], head) for head in (c.AddUnnormed(), c.Add()))
    assert identity.run_id(c.recipe_of(unnormed)) == identity.run_id(c.recipe_of(add))
    assert canonical([0, "input"], c.AddUnnormed()).head_type == c.AddUnnormed()


def test_hidden_channels_that_would_be_found_anyway_are_no_choice() -> None:
    """2 x 16 x 32 weights over 32 + 16 channels are 21.3: 24."""
    assert canonical([0], c.ConcatMLP(hidden=24)).head_type == c.ConcatMLP()
    assert canonical([0], c.ConcatMLP(hidden=16)).head_type == c.ConcatMLP(hidden=16)
    assert canonical([0], c.ConcatMLPNarrow(width=80, hidden=8)).head_type.hidden == 8  # pyright: ignore


BAD: dict[str, tuple[Any, c.HeadType, str]] = {
    "last in a sum": (["last"], c.AddTanh(), "`last` is a source for head_type=concat, concat_mlp, concat_mlp_narrow"),
    "last backed out": (["last"], c.Backout(), "only, not for backout"),
    "an own embedding, detached": (["extra"], c.AddDetached(), "`extra` is a source for .* only, not for add_detached"),
    "an own embedding, backed out": ([0, "extra"], c.Backout(), "`extra` is a source for .* only, not for backout"),
    "twice": (["extra", "extra"], c.Add(), "names extra twice"),
    "no width": ([0], c.ConcatMLPNarrow(width=0), r"head_type.width=0 must be above 0"),
    "negative hidden": ([0], c.ConcatMLP(hidden=-8), r"head_type.hidden=-8 must not be negative"),
    "nothing left": (
        [0, 1],
        c.ConcatMLPNarrow(width=32),
        r"projections of 2 sources leave no parameters for the last MLP; valid: head_type.width below 32, or",
    ),
    "no width given": ([0], c.ConcatMLPNarrow(), r"head_type.width has no value"),
    "values that do not fit": ([0, 1], c.Backout(), r"lambda_init.backout has 3 values for 2 sources"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_in_one_line(case: str) -> None:
    layers, head, message = BAD[case]
    with pytest.raises(UserError, match=message) as refused:
        canonical(layers, head, lambda_init=replace(LAMBDAS, backout=[0.1, 0.2, 0.3]))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("head", [c.ConcatMLP(), c.ConcatMLPNarrow(width=4)])
def test_a_tail_of_parallel_layers_has_no_last_mlp(head: c.HeadType) -> None:
    tail = c.Residual(parallel_tail=2)
    with pytest.raises(UserError, match=rf"head_type={head.name} takes .* residual.parallel_tail=2 .* valid: [^\n]*$"):
        canonical([0], head, residual=tail)
    assert canonical([], head, residual=tail).head_type == c.Last()
    assert canonical([0], c.Concat(), residual=tail).head_type == c.Concat()


def test_the_width_that_is_valid_just_is() -> None:
    assert canonical([0, 1], c.ConcatMLPNarrow(width=31)).head_type == c.ConcatMLPNarrow(width=31)


def test_every_head_says_what_it_takes() -> None:
    assert set(SPECS) == set(READOUTS) == set(c.choices(c.HeadType))
    for head, spec in SPECS.items():
        assert list(spec.named) == [source for source in NAMED if source in spec.named], head
        assert not (spec.lambdas and spec.owns_last_mlp)


def test_an_owned_mlp_is_compiled_as_blocks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(self))
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    for head in ("add", *OWNERS):
        model = build(recipe(head, (1,)))
        compiled.clear()
        model.compile_parts()
        assert compiled == [*model.blocks, *([model.readout.mlp] if head in OWNERS else [])]


def test_the_documents_table_of_heads_says_what_each_takes() -> None:
    text = (Path(__file__).parents[1] / "docs" / "ablations.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    documented = {row[0].strip("`"): row[3] for row in rows if len(row) == 5 and row[3] != "sources"}
    assert documented == {
        head: ", ".join(["layers", *spec.named]) if head != "last" else "none" for head, spec in SPECS.items()
    }
