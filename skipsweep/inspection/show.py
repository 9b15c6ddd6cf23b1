"""What a person at a terminal sees of an inspection."""

from pathlib import Path

from skipsweep.inspection.document import Inspection, visible
from skipsweep.sweep.show import console, place, table


def inspection(found: Inspection, folder: Path | None) -> None:
    """Next tokens, sizes, weights and contributions, and where the pictures lie."""
    console.print(f"{found.run}: step {found.step}, attention window {found.window_blocks or 'unlimited'} (blocks)")
    console.print(f"prompt ({found.prompt_source}): " + visible("".join(token.text for token in found.prompt)))
    _lens(found)
    _sizes(found)
    _shares(found)
    _contributions(found)
    console.print(
        f"\neffective rank of what the head sees: {found.effective_rank:.1f} of at most {found.effective_rank_most}"
    )
    for note in found.notes:
        console.print(f"note: {note}")
    if folder is not None:
        place("files", folder)


def _lens(found: Inspection) -> None:
    """Position by position the likeliest next token of every source; all k stand in the JSON."""
    shown = table(
        ">at", "read", *(lens.title for lens in found.lens), title="\nlikeliest next token and its probability"
    )
    for at, token in enumerate(found.prompt):
        cells = (f"{visible(lens.top[at][0].text)} {lens.top[at][0].p:.2f}" for lens in found.lens)
        shown.add_row(str(at), visible(token.text), *cells)
    console.print(shown)
    last = table("from", *[f"{n + 1}." for n in range(len(found.lens[0].top[0]))], title="\nafter the last token")
    for lens in (*found.lens, *found.projected_values):
        last.add_row(lens.title, *(f"{visible(guess.text)} {guess.p:.3f}" for guess in lens.top[-1]))
    console.print(last)


def _sizes(found: Inspection) -> None:
    console.print()
    shown = table("root mean square of", ">RMS")  # as a title it would fold: titles are as narrow as the table
    for what, value in (found.stream_rms | found.embedding_rms).items():
        shown.add_row(what, f"{value:.4g}")
    console.print(shown)


def _shares(found: Inspection) -> None:
    shown = table("sum", ">before layer", "of", ">weight", ">RMS", ">share", title="\nnorm-corrected weights")
    for one in found.shares:
        where = "-" if one["layer"] is None else str(one["layer"])
        for term in one["terms"]:
            share = "-" if term["share"] is None else f"{term['share']:+.3f}"
            shown.add_row(one["mechanism"], where, term["name"], f"{term['weight']:+.4f}", f"{term['rms']:.4g}", share)
    console.print(shown if found.shares else "\nno weighted sums in this model")


def _contributions(found: Inspection) -> None:
    title = f"\ncontributions to the {found.contributions_of} (rounding {found.contributions_error:.1e})"
    shown = table("", ">weight in stream", ">in output", ">RMS", ">share", title=title)
    for one in found.contributions:
        share = "-" if one.share is None else f"{one.share:+.3f}"
        shown.add_row(one.name, f"{one.stream_weight:+.4f}", f"{one.output_weight:+.4f}", f"{one.rms:.4g}", share)
    console.print(shown)
