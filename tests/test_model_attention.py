"""Which keys a query sees, against the definition, key by key; attention over them, in both implementations.

Legend: B batch, T time, H heads, K channels of a head, N blocks of a sequence.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skipsweep.model import attention
from skipsweep.model.attention import ChunkedMask, attend, attend_layer, block_mask, blocks_seen, documents, uses_flex
from skipsweep.model.seams import LayerContext

HEADS, WIDTH, SCALE = 2, 4, 0.3


def sees(docs: list[int], window: int, block: int) -> Tensor:
    """The definition: whether query q (row) sees key k (column) of one sequence with these documents' numbers."""
    length = len(docs)
    found = torch.zeros(length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(q + 1):
            found[q, k] = docs[q] == docs[k] and (not window or q // block - k // block < window)
    return found


@st.composite
def sequences(draw: Any, block: st.SearchStrategy[int], whole: bool = False) -> tuple[Tensor, int, int]:
    """Documents' numbers (B, T), a window in blocks (0: all), tokens per block; `whole`: T is a multiple of them."""
    size, batch = draw(block), draw(st.integers(1, 3))
    blocks = draw(st.integers(1, 6))
    length = blocks * size if whole else draw(st.integers(1, blocks * size))
    opens = draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=batch, max_size=batch))
    if draw(st.booleans()):  # else nearly all blocks hold several documents
        opens = [[b and draw(st.integers(0, 5)) == 0 for b in row] for row in opens]
    return torch.tensor(opens).cumsum(-1, dtype=torch.int32), draw(st.integers(0, 7)), size


def qkv(docs: Tensor, seed: int = 0) -> list[Tensor]:
    shape = (3, len(docs), HEADS, docs.shape[1], WIDTH)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [x.clone().requires_grad_() for x in drawn]


def dense(q: Tensor, k: Tensor, v: Tensor, docs: Tensor, window: int, block: int) -> Tensor:
    """Attention over the whole square."""
    seen = torch.stack([sees(row, window, block) for row in docs.tolist()])[:, None]
    scores = (q @ k.transpose(-1, -2) * SCALE).masked_fill(~seen, -math.inf)
    return scores.softmax(-1) @ v


def with_gradients(out: Tensor, given: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad(out, given, weights)]


# ----------------------------------------------------------------------------------------------------------- documents


def test_each_end_of_text_opens_a_document():
    ids = torch.tensor([[5, 9, 1, 9, 9, 2], [9, 1, 1, 1, 1, 1]])
    assert documents(ids, 9).tolist() == [[0, 1, 1, 2, 3, 3], [1] * 6]
    assert documents(ids, 9).dtype == torch.int32


# ---------------------------------------------------------------------------------------------------------- ChunkedMask


@settings(deadline=None, max_examples=60)
@given(case=sequences(st.integers(1, 5)), chunk=st.integers(1, 12), no_docs=st.booleans())
def test_attention_by_chunks_is_attention_over_what_is_seen(case, chunk, no_docs):
    docs, window, block = case
    docs = torch.zeros_like(docs) if no_docs else docs
    given_ = qkv(docs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "CHUNK", chunk)
        mask = ChunkedMask(docs.shape[1], None if no_docs else docs, window, block)
        ours = with_gradients(attend(*given_, mask, SCALE), given_)
    for our, their in zip(ours, with_gradients(dense(*given_, docs, window, block), given_), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-11, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(case=sequences(st.integers(1, 5)))
def test_what_is_seen_is_the_definition(case):
    docs, window, block = case
    every = torch.arange(docs.shape[1])
    found = ChunkedMask(docs.shape[1], docs, window, block).sees(every, every)
    assert torch.equal(found[:, 0], torch.stack([sees(row, window, block) for row in docs.tolist()]))


def test_chunks_look_at_no_keys_beyond_the_window(monkeypatch):
    """Of a long sequence with a short window, memory and time grow with length times window."""
    monkeypatch.setattr(attention, "CHUNK", 8)
    assert list(ChunkedMask(20, None, 2, 4)._chunks()) == [(0, 8, 0), (8, 16, 4), (16, 20, 12)]
    assert list(ChunkedMask(20, None, 0, 4)._chunks()) == [(0, 8, 0), (8, 16, 0), (16, 20, 0)]


def test_layers_share_the_mask_of_a_sequence_that_is_one_chunk(monkeypatch):
    made = []
    monkeypatch.setattr(
        ChunkedMask, "sees", lambda self, q, k, sees=ChunkedMask.sees: made.append(1) or sees(self, q, k)
    )
    docs = torch.tensor([[0, 0, 1, 1, 1, 2]])
    mask, given_ = ChunkedMask(6, docs, 2, 2), qkv(docs)
    first, second = (attend(*given_, mask, SCALE) for _ in range(2))
    assert torch.equal(first, second)
    assert len(made) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_see_the_same(dtype):
    docs = torch.tensor([[0, 0, 1, 1, 1, 2]])
    q, k, v = (x.detach().to(dtype) for x in qkv(docs))
    ours = attend(q, k, v, ChunkedMask(6, docs, 2, 2), SCALE)
    assert ours.dtype == dtype
    theirs = dense(q.double(), k.double(), v.double(), docs, 2, 2)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=8 * torch.finfo(dtype).eps)


# ----------------------------------------------------------------------------------------------- FlexAttention's masks


@settings(deadline=None, max_examples=80)
@given(case=sequences(st.integers(1, 5), whole=True))
def test_blocks_in_part_and_whole_make_up_what_is_seen(case):
    """Also for a window of one block: the quirk of the record, whose short window would be of none."""
    docs, window, block = case
    part, whole = (x[:, 0] for x in blocks_seen(docs, window, block))
    for row, in_part, wholly in zip(docs.tolist(), part, whole, strict=True):
        seen = sees(row, window, block)
        tiles = seen.unfold(0, block, block).unfold(1, block, block)  # (N, N, queries, keys)
        assert torch.equal(in_part | wholly, tiles.any(-1).any(-1))
        assert not (in_part & wholly).any()
        assert tiles[wholly].all()
        assert not (tiles.all(-1).all(-1) & ~wholly).tril(-1).any(), (
            "only a query's own block takes mask_mod for naught"
        )
        # mask_mod looks at position and document: the window has to be kept by the blocks
        tokens = in_part.repeat_interleave(block, 0).repeat_interleave(block, 1)
        assert torch.equal(seen & tokens, sees(row, 0, block) & tokens)


@settings(deadline=None, max_examples=40)
@given(case=sequences(st.integers(1, 5), whole=True))
def test_the_block_mask_is_the_definition(case):
    docs, window, block = case
    for row, found in zip(docs.tolist(), seen_by_mask(block_mask(docs, window, block), docs.shape), strict=True):
        assert torch.equal(found, sees(row, window, block))


def seen_by_mask(mask: Any, shape: torch.Size) -> Tensor:
    """What a kernel that follows the lists computes: whole blocks as they are, partial ones through mask_mod."""
    (batch, length), block = shape, mask.BLOCK_SIZE[0]
    found = torch.zeros(batch, length, length, dtype=torch.bool)
    position = torch.arange(length)
    for b in range(batch):
        allowed = mask.mask_mod(torch.tensor(b), torch.tensor(0), position[:, None], position[None, :])
        for listed, count, keep in (
            (mask.kv_indices, mask.kv_num_blocks, allowed),
            (mask.full_kv_indices, mask.full_kv_num_blocks, torch.ones_like(allowed)),
        ):
            for n in range(length // block):
                for m in listed[b, 0, n, : count[b, 0, n]].tolist():
                    tile = slice(n * block, (n + 1) * block), slice(m * block, (m + 1) * block)
                    assert not found[b][tile].any(), "a block is listed twice"
                    found[b][tile] = keep[tile]
    return found


@settings(deadline=None, max_examples=20)
@given(case=sequences(st.integers(1, 5), whole=True))
def test_queries_are_listed_for_the_backward_pass_too(case):
    """The lists by key block hold the same pairs as those by query block."""
    docs, window, block = case
    mask = block_mask(docs, window, block)
    for kind in ("", "full_"):
        by_query, by_key = (
            {
                (b, *((n, m) if side == "kv" else (m, n)))
                for b in range(len(docs))
                for n in range(docs.shape[1] // block)
                for m in getattr(mask, f"{kind}{side}_indices")[b, 0, n, : count[b, 0, n]].tolist()
            }
            for side in ("kv", "q")
            for count in [getattr(mask, f"{kind}{side}_num_blocks")]
        )
        assert by_query == by_key


@pytest.mark.parametrize("window", [0, 1, 2, 3])
def test_torchs_own_mask_agrees_where_there_is_no_window(window):
    """create_mask evaluates mask_mod alone; the window is in the lists."""
    from torch.nn.attention.flex_attention import create_mask

    docs = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]])
    mask = block_mask(docs, window, 2)
    made = create_mask(mask.mask_mod, 1, 1, 8, 8, device="cpu")[0, 0]
    assert torch.equal(made, sees(docs[0].tolist(), 0, 2))
    assert torch.equal(seen_by_mask(mask, docs.shape)[0], sees(docs[0].tolist(), window, 2))


def test_flex_attention_is_for_whole_blocks_on_a_gpu():
    class Ids:
        def __init__(self, length: int, device: str = "cuda") -> None:
            self.shape, self.device = (1, length), torch.device(device)

    assert uses_flex(Ids(1024), torch.bfloat16, 128)  # type: ignore[arg-type]
    assert uses_flex(Ids(1024), torch.float32, 256)  # type: ignore[arg-type]
    refused = [
        (Ids(1024, "cpu"), torch.bfloat16, 128),
        (Ids(1024), torch.float64, 128),
        (Ids(1000), torch.bfloat16, 128),
        (Ids(1024), torch.bfloat16, 100),
        (Ids(1152), torch.bfloat16, 256),
    ]
    assert not any(uses_flex(*case) for case in refused)  # type: ignore[arg-type]


@pytest.mark.nightly  # compiles C++
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_flex_attention_gives_what_scaled_dot_product_attention_does():
    """The compiled kernel, forward, on CPU. Uncompiled it does not heed which blocks are seen."""
    length, block = 1024, 128
    ids = torch.zeros(2, length, dtype=torch.long)
    ids[0, [3, 300, 301, 640]] = ids[1, 517] = 1
    docs = documents(ids, 1)
    drawn = torch.randn(3, 2, HEADS, length, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for window in (1, 2, 3, 5, 0):
            ours = attend(*drawn, block_mask(docs, window, block), SCALE)
            theirs = attend(*drawn, ChunkedMask(length, docs, window, block), SCALE)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.nightly  # compiles C++
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("axis", ["key_bias", "query_bias"])
def test_flex_attention_sees_gates_as_scaled_dot_product_attention_does(axis: str):
    """Gates are one more channel, so that heads have an odd number of them: forward, compiled, on CPU."""
    length, block = 512, 128
    ids = torch.zeros(2, length, dtype=torch.long)
    ids[0, [3, 300]] = 1
    docs = documents(ids, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, 2, HEADS, length, 16, generator=generator)
    bias = torch.rand(2, length, 1, generator=generator).clamp(min=1e-6).log()
    bias[:, ::3] = math.log(1e-6)  # closed
    with torch.no_grad():
        for window in (2, 0):
            masks = block_mask(docs, window, block), ChunkedMask(length, docs, window, block)
            seen = (LayerContext((bias, bias), mask, None, None, None)._replace(**{axis: bias}) for mask in masks)
            ours, theirs = (attend_layer(*drawn, layer, SCALE) for layer in seen)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture
def flex_with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention and its gradients as PyTorch defines them, not as a kernel: on CPU it refuses only the kernels."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(attention, "_compiled", lambda kernel: kernel)


@pytest.mark.usefixtures("flex_with_gradients")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own look at it
@pytest.mark.parametrize("axis", ["key_bias", "query_bias"])
@pytest.mark.parametrize("window", [0, 1])
def test_flex_attentions_gradients_are_those_of_scaled_dot_product_attention(axis: str, window: int):
    """Of queries, keys, values, and of the gates, in float64."""
    length, block = 256, 128
    ids = torch.zeros(2, length, dtype=torch.long)
    ids[0, [3, 130]] = 1
    docs = documents(ids, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, 2, HEADS, length, WIDTH, generator=generator, dtype=torch.float64)
    gates = torch.rand(2, length, 1, generator=generator, dtype=torch.float64) + 1e-6

    def gradients(mask: Any) -> tuple[Tensor, Tensor]:
        qkv, open_by = drawn[:3].clone().requires_grad_(), gates.clone().requires_grad_()
        bias = open_by.log()
        layer = LayerContext((bias, bias), mask, None, None, None)._replace(**{axis: bias})
        (attend_layer(*qkv, layer, SCALE) * drawn[3]).sum().backward()
        assert qkv.grad is not None
        assert open_by.grad is not None
        return qkv.grad, open_by.grad

    ours, theirs = (
        gradients(heeding_blocks(block_mask(docs, window, block), docs)),
        gradients(ChunkedMask(length, docs, window, block)),
    )
    if axis == "key_bias":
        assert theirs[1].abs().max() > 0.1
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-10)


def heeding_blocks(mask: Any, docs: Tensor) -> Any:
    """The same mask for FlexAttention without a kernel, which asks only mask_mod."""
    seen = seen_by_mask(mask, docs.shape)
    mask.mask_mod = lambda b, h, q, k: seen[b, q, k]
    return mask
