"""Settings that cannot go together, refused when planning: one line with key, value and what is valid."""

from skipsweep.config import (
    ConcatMLP,
    ConcatMLPNarrow,
    Config,
    Gated,
    InUnits,
    Last,
    NoControl,
    TargetControl,
    Targeted,
    choices,
    whole_sequences,
    world_size,
)
from skipsweep.errors import UserError
from skipsweep.model import readout_specs
from skipsweep.model.wiring import mlp_hidden
from skipsweep.sweep.canonical import resolved


def check(config: Config) -> None:
    """Raise UserError for the first rule that `config` breaks. Its values are valid, each by itself."""
    written_out = resolved(config)
    for rule in RULES:
        told = rule(written_out)
        if told is not None:
            raise UserError(told)


# ------------------------------------------------------------------------------------------------- head and its sources


def last_takes_no_sources(config: Config) -> str | None:
    sources = config.skip_layers.layers
    if not sources or not isinstance(config.head_type, Last):
        return None
    shown = str(sources).replace(" ", "").replace("'", "")
    return f"head_type=last takes no sources, but skip_layers={shown}; use head_type=add or skip_layers=none"


def head_offers_its_sources(config: Config) -> str | None:
    head = config.head_type.name
    for source in config.skip_layers.layers:
        if source in readout_specs.NAMED and source not in readout_specs.SPECS[head].named:
            takers = ", ".join(name for name, spec in readout_specs.SPECS.items() if source in spec.named)
            return f"skip_layers: `{source}` is a source for head_type={takers} only, not for {head}"
    return None


def projections_leave_an_mlp(config: Config) -> str | None:
    head, count = config.head_type, len(config.skip_layers.layers)
    if not isinstance(head, ConcatMLP | ConcatMLPNarrow) or not count or head.hidden:
        return None
    if readout_specs.weights_left(head, count, config.model) > 0:
        return None
    return (
        f"head_type={head.name}: projections of {count} sources leave no parameters for the last MLP; "
        f"valid: head_type.width below {-(-2 * mlp_hidden(config.model) // count)}, or head_type.hidden=..."
    )


# ------------------------------------------------------------------------------------ heads that take the last MLP away


def _takes_last_mlp(config: Config) -> bool:
    """Without sources every head is `last`, which leaves the MLP where it is."""
    return bool(config.skip_layers.layers) and readout_specs.SPECS[config.head_type.name].owns_last_mlp


def _leaving_mlp() -> str:
    return ", ".join(name for name, spec in readout_specs.SPECS.items() if not spec.owns_last_mlp)


def last_mlp_is_the_speedruns(config: Config) -> str | None:
    if not _takes_last_mlp(config) or config.model.block == "speedrun":
        return None
    return (
        f"head_type={config.head_type.name} has the MLP of model.block=speedrun in place of the last one, not that of "
        f"{config.model.block}; valid: {_leaving_mlp()}"
    )


def last_mlp_stands_alone(config: Config) -> str | None:
    if not _takes_last_mlp(config) or not config.residual.parallel_tail:
        return None
    return (
        f"head_type={config.head_type.name} takes the last MLP out of the trunk, but with residual.parallel_tail="
        f"{config.residual.parallel_tail} it stands beside other blocks; valid: residual.parallel_tail=0, or another "
        "head"
    )


def last_mlp_is_there(config: Config) -> str | None:
    last = config.model.layers - 1
    if not _takes_last_mlp(config) or last not in config.model.no_mlp:
        return None
    return f"head_type={config.head_type.name} takes the last MLP, but model.no_mlp has layer {last}"


def last_mlp_has_no_gate(config: Config) -> str | None:
    if not _takes_last_mlp(config) or not isinstance(config.gate_targets, Gated):
        return None
    return (
        f"head_type={config.head_type.name} takes the last MLP, which gate_targets={config.gate_targets.name} "
        f"could not skip; valid with gates: {_leaving_mlp()}"
    )


# ------------------------------------------------------------------------------------------------- trunk and its wiring


def rolling_has_room(config: Config) -> str | None:
    layers = config.model.layers
    if not config.residual.rolling or layers >= 4:
        return None
    return f"residual.rolling=true starts at layer 3, but there are {layers} layers; valid: 4 or more"


def tail_has_room(config: Config) -> str | None:
    k, layers = config.residual.parallel_tail, config.model.layers
    if not k or 2 <= k < layers:
        return None
    return f"residual.parallel_tail={k}; valid: 0, or 2 to {layers - 1} of {layers} layers"


def unet_starts_before_the_tail(config: Config) -> str | None:
    k, layers = config.residual.parallel_tail, config.model.layers
    for source, target in config.residual.unet if k else ():
        if source >= layers - k:
            return (
                f"residual.unet: {source}->{target} starts among the last {k} layers, which stand side by side "
                f"(residual.parallel_tail); valid sources: below {layers - k}"
            )
    return None


def value_embeddings_have_values(config: Config) -> str | None:
    model = config.model
    if config.embeddings.value_layers and model.kv_heads not in (0, model.heads):
        return (
            f"embeddings.value_layers needs a value per channel: valid with model.kv_heads={model.kv_heads}: [], or "
            f"model.kv_heads={model.heads}"
        )
    for layer in (layer for table in config.embeddings.value_layers for layer in table):
        if layer in model.no_attention:
            return f"embeddings.value_layers: layer {layer} has no attention, so no values to add to"
    return None


# ---------------------------------------------------------------------------------------------- gates and their control


def gates_pair_layers(config: Config) -> str | None:
    gates, layers = config.gate_targets, config.model.layers
    if not isinstance(gates, Gated) or layers % 2 == 0:
        return None
    return f"gate_targets={gates.name} pairs opposite layers, but model.layers={layers} is odd; valid: an even number"


def zero_gates_are_not_controlled(config: Config) -> str | None:
    gates, control = config.gate_targets, config.control
    if not isinstance(gates, Gated) or gates.init != "zero" or isinstance(control, NoControl):
        return None
    return (
        f"gate_targets.init=zero gives gates no gradient, so control={control.name} moves nothing; "
        "valid: gate_targets.init=normal, gate_targets.init=open, or control=none"
    )


def targets_have_a_control(config: Config) -> str | None:
    gates = config.gate_targets
    if not isinstance(config.control, NoControl) or not isinstance(gates, Targeted):
        return None
    valid = ", ".join(f"control={name}" for name in choices(TargetControl))
    return (
        f"gate_targets={gates.name} sets targets, but control=none drives no gate to them; valid: {valid}, "
        "or gate_targets=free"
    )


def control_has_gates(config: Config) -> str | None:
    gates, control = config.gate_targets, config.control
    if isinstance(control, NoControl) or isinstance(gates, Gated):
        return None
    useful = Targeted if isinstance(control, TargetControl) else Gated
    valid = ", ".join(f"gate_targets={name}" for name in choices(useful))
    return f"control={control.name} has no gates to control with gate_targets={gates.name}; valid: {valid}"


def control_has_targets(config: Config) -> str | None:
    gates, control = config.gate_targets, config.control
    if not isinstance(control, TargetControl) or not isinstance(gates, Gated) or isinstance(gates, Targeted):
        return None
    valid = ", ".join(f"gate_targets={name}" for name in choices(Targeted))
    return f"control={control.name} needs targets, gate_targets={gates.name} has none; valid: {valid}"


# ---------------------------------------------------------------------------------------------------- where it computes


def skipping_has_gates(config: Config) -> str | None:
    """Only what no open token looks at can be left out."""
    gates = config.gate_targets
    if not config.compute.skip:
        return None
    if not isinstance(gates, Gated):
        return f"compute.skip=true needs gates, but gate_targets={gates.name}; valid: false, or e.g. free"
    if gates.attention != "keys":
        return (
            f"compute.skip=true leaves out closed keys, but with gate_targets.attention={gates.attention} open tokens "
            "look at them; valid: false, or gate_targets.attention=keys"
        )
    return None


def processes_share_the_batch(config: Config) -> str | None:
    processes, data = world_size(config.compute), config.data
    sequences = data.batch_tokens // data.seq_len
    if sequences % processes == 0:
        return None
    return (
        f"{processes} processes cannot share a batch of {sequences} sequences "
        f"(data.batch_tokens={data.batch_tokens}, data.seq_len={data.seq_len}) evenly"
    )


def micro_batches_are_whole_units(config: Config) -> str | None:
    control, compute, data = config.control, config.compute, config.data
    if not isinstance(control, InUnits) or not control.sequences:
        return None
    whole = whole_sequences(compute, data)
    if whole % control.sequences == 0:
        return None
    share = data.batch_tokens // data.seq_len // world_size(compute)
    units = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
    fits = f", or compute.micro_batch={control.sequences}" if share % control.sequences == 0 else ""
    return (
        f"control.sequences={control.sequences}: a micro-batch is a whole number of such units, but on this machine "
        f"micro-batches are multiples of {whole} sequences (compute.micro_batch={compute.micro_batch}, a process's "
        f"share of a step is {share}); valid: {units}{fits}"
    )


RULES = (
    last_takes_no_sources,
    head_offers_its_sources,
    last_mlp_is_the_speedruns,
    tail_has_room,
    last_mlp_stands_alone,
    last_mlp_is_there,
    last_mlp_has_no_gate,
    projections_leave_an_mlp,
    rolling_has_room,
    unet_starts_before_the_tail,
    value_embeddings_have_values,
    gates_pair_layers,
    zero_gates_are_not_controlled,
    targets_have_a_control,
    control_has_gates,
    control_has_targets,
    skipping_has_gates,
    processes_share_the_batch,
    micro_batches_are_whole_units,
)
"""Each looks at a configuration whose words are resolved, and returns what is wrong with it, or None."""
