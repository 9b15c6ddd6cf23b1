"""Figures and the page: every mark is a run of the folders, axes carry units, nothing leaves the machine."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from sweep_folders import Made

from skipsweep.analyze import figures, page
from skipsweep.analyze.evidence import Evidence
from skipsweep.analyze.figures import curves, finals, scalars, style, tables
from skipsweep.analyze.figures.style import Figure
from skipsweep.analyze.figures.tables import Tables
from skipsweep.analyze.findings import Findings, Sheet


def single_layers(folder: Path) -> Evidence:
    made = Made(folder, baseline="none")
    made.arm("none", [2.93, 2.94])
    made.arm("2", [2.92, None], sources=[2], lambdas={"lambda/skip/2": 0.3, "lambda/block/0/x00": 0.1})
    made.arm("5", [2.91, 2.91], sources=[5], lambdas={"lambda/skip/5": -0.2})
    made.arm("concat", [2.90], sources=[5], recipe={"head_type.name": "concat"})
    return made.read()


def orderings(folder: Path) -> Evidence:
    made = Made(folder, baseline="none")
    made.arm("none", [2.93])
    for method, losses in (("late_to_early", (2.92, 2.91)), ("early_to_late", (2.92, 2.91)), ("random", (2.94, 2.95))):
        for n, loss in zip((2, 3), losses, strict=True):
            layers = list(range(n))
            made.arm(f"{method}{n}", [loss], sources=layers, tags=[f"multi_layer/{method}/N={n}"])
    return made.read()


def says(**changes: Any) -> Findings:
    return Findings(**{"answer": "Not distinguishable.", "counts": {}, "warnings": [], "sheets": []} | changes)


def marks(figure: Figure | None, data: Tables) -> int:
    """Points that are really drawn, counted in the SVG."""
    assert figure is not None
    svg = vl_convert.vegalite_to_svg(page.spec(figure) | {"datasets": data})
    return svg.count('aria-roledescription="point"')


def panels(figure: Figure | None, data: Tables) -> list[str]:
    """Titles that stand centred above panels."""
    assert figure is not None
    svg = vl_convert.vegalite_to_svg(page.spec(figure) | {"datasets": data})
    return re.findall(r'<text text-anchor="middle" transform="translate\(0,8\)"[^>]*>(\w+)<', svg)


def sizes(figure: Figure | None, data: Tables) -> list[str]:
    """Outlines of the marks without their places."""
    assert figure is not None
    svg = vl_convert.vegalite_to_svg(page.spec(figure) | {"datasets": data})
    return re.findall(r'aria-roledescription="point"[^>]* d="([^"]+)"', svg)


def drawing(figure: Figure | None, data: Tables, **parameters: Any) -> str:
    """The figure as SVG, after a reader has chosen `parameters`."""
    assert figure is not None
    spec = page.spec(figure)
    for parameter in spec.get("params", ()):
        parameter["value"] = parameters.pop(parameter["name"], parameter.get("value"))
    assert not parameters
    return vl_convert.vegalite_to_svg(spec | {"datasets": data})


def titles(node: Any) -> list[str]:
    """Titles of all axes of a specification."""
    if isinstance(node, list):
        return [title for child in node for title in titles(child)]
    if not isinstance(node, dict):
        return []
    own = [node[axis].get("title") for axis in ("x", "y") if isinstance(node.get(axis), dict)]
    return [title for title in own if title] + [title for child in node.values() for title in titles(child)]


def test_the_tables_say_what_the_folders_say(tmp_path: Path) -> None:
    evidence = single_layers(tmp_path)
    data = tables.of(evidence)
    assert [row["arm"] for row in data["runs"]] == ["none", "none", "2", "2", "5", "5", "concat"]
    assert [row.get("loss") for row in data["runs"]] == [2.93, 2.94, 2.92, None, 2.91, 2.91, 2.90]
    assert data["runs"][2]["difference"] == pytest.approx(2.92 - 2.935)
    assert "difference" not in data["runs"][3]
    assert [row.get("distance") for row in data["runs"][1:3]] == [None, 5]
    for point in range(7):
        recorded = evidence.runs[data["runs"][point]["run"]].series("val/loss")
        drawn = [(row["step"], row["time"], row["loss"]) for row in data["curves"] if row["point"] == point]
        assert drawn == [tuple(row) for row in recorded.tolist()]
    learned = [row for row in data["lambdas"] if row["point"] == 2 and row["last"]]
    assert [(row["weight"], row["layer"], row["step"], row["value"]) for row in learned] == [
        ("skip", 2, 100, 0.3),
        ("x00", 0, 100, 0.1),
    ]
    last = [row for row in data["means"] if row["arm"] == "none"][-1]
    assert last["loss"] == pytest.approx(2.935)
    assert last["high"] - last["low"] == pytest.approx(2 * 0.01 / 2**0.5)
    assert all("low" not in row for row in data["means"] if row["arm"] == "concat"), "one run has no spread"


def test_every_finished_run_has_a_mark_also_where_marks_coincide(tmp_path: Path) -> None:
    data = tables.of(single_layers(tmp_path))
    assert marks(finals.per_arm(data), data) == 6
    assert marks(finals.per_layer(data), data) == 4
    assert panels(finals.per_layer(data), data) == ["add", "concat"], "none for the baseline, which has no layer"
    areas = sizes(finals.over_distance(data), data)
    assert len(set(areas)) == 2, "the two equal runs are a small and a large ring"
    assert marks(finals.over_distance(data), data) == 4
    assert marks(scalars.skips(data), data) == 4, "the failed run's last known weight is among them"


def test_a_mean_does_not_zigzag_between_runs_validated_at_other_steps(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    for seed, (every, last, off) in enumerate([(25, 100, 0.0), (25, 100, 0.1), (50, 100, 1.0), (25, 50, 2.0)]):
        curve = [(step, float(step), 4.0 - step / 100 + off) for step in range(0, last + 1, every)]
        made.point("none", seed, made.run("none", seed, None if last < 100 else 3.0 + off, curve=curve).name)
    means = tables.of(made.read())["means"]
    assert [(row["step"], row["n"]) for row in means] == [(0, 4), (50, 4), (100, 3)]


def test_orderings_stand_side_by_side_and_equal_points_are_all_drawn(tmp_path: Path) -> None:
    data = tables.of(orderings(tmp_path))
    assert marks(finals.per_ordering(data), data) == 6
    assert marks(finals.over_distance(data), data) == 6, "late_to_early and early_to_late coincide here"
    assert len(set(sizes(finals.over_distance(data), data))) == 2, "one is a ring around the other"
    count = finals.over_count(data)
    assert marks(count, data) == 12, "all of them, and each again in its pair's panel"
    assert count is not None
    assert [panel["title"] for panel in page.spec(count)["concat"]] == ["all", "late/early first", "random"]


def test_what_a_sweep_has_not_is_not_drawn(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.9])
    data = tables.of(made.read())
    assert [figure.name for figure in figures.drawn(data)] == [
        "loss-per-arm", "loss-over-steps", "loss-over-time", "learning-rates",
    ]  # fmt: skip
    nothing = Made(tmp_path / "b", baseline="none")
    nothing.arm("none", [None], state="planned")
    assert figures.drawn(tables.of(nothing.read())) == []


def test_one_layer_under_several_wirings_has_a_panel_for_each(tmp_path: Path) -> None:
    """Each with its own arm without sources; a wiring that has none has no line."""
    made = Made(tmp_path, baseline="none")
    wirings = {"unet": ([[1, 6]], 2.93), "none": ([], 2.95), "shifted": ([[1, 7]], None)}
    for name, (unet, loss) in wirings.items():
        recipe = {"residual.unet": unet, "residual.rolling": False}
        if loss is not None:
            made.arm("none" if name == "unet" else f"alone/{name}", [loss, loss + 0.01], recipe=recipe)
        for layer in (2, 5):
            more = {"lambda_init.x_lambda": 1.0} | (recipe if layer == 2 else {"residual.unet": unet})
            made.arm(f"{name}/{layer}", [2.92, 2.91], sources=[layer], recipe=more)
    data = tables.of(made.read())
    found = {row["panel"]: row.get("alone") for row in data["runs"] if "layer" in row}
    assert found == {
        "add: residual.unet=[[1,6]]": pytest.approx(2.935),
        "add: residual.unet=[]": pytest.approx(2.955),
        "add: residual.unet=[[1,7]]": None,
    }
    figure = finals.per_layer(data)
    assert marks(figure, data) == 12
    assert drawing(figure, data).count("mean without a source</text>") == 2
    assert figure is not None
    assert "what else differs" in figure.caption
    assert "dashed: the mean without a source." in figure.caption


def test_axes_have_units_and_captions_say_n(tmp_path: Path) -> None:
    for evidence in (single_layers(tmp_path / "a"), orderings(tmp_path / "b")):
        for figure in figures.drawn(tables.of(evidence)):
            named = titles(page.spec(figure))
            assert len(named) >= 2, figure.name
            for title in named:
                assert re.search(r"\(.+\)$|^arm$|^ordering that", title), title
            assert re.search(r"\d", figure.caption), figure.name


def test_an_arm_has_one_colour_in_all_figures(tmp_path: Path) -> None:
    scales = set()

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("color"), dict) and "scale" in node["color"]:
                scales.add(json.dumps(node["color"]["scale"], sort_keys=True))
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                collect(child)

    for figure in figures.drawn(tables.of(single_layers(tmp_path))):
        collect(page.spec(figure))
    [scale] = map(json.loads, scales)
    assert scale["domain"] == ["none", "2", "5", "concat"]
    assert len(set(scale["range"])) == 4


def test_more_arms_than_colours_are_told_apart_by_kind(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.9])
    for layer in range(75):
        made.arm(str(layer), [2.9], sources=[layer % 8])
    data = tables.of(made.read())
    assert style.domain(data) == ["baseline: none", "single_layer, add"]
    assert marks(finals.per_arm(data), data) == 76


def test_gates_give_curves_and_sparsity(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.9])
    assert finals.over_inference(tables.of(made.read())) is None
    made.arm("gated", [2.91], lambdas={"gate/0": 0.7, "gate/1": 1.0, "gate/zeros/0": 0.5, "gate/zeros/1": 0.0})
    data = tables.of(made.read())
    assert marks(finals.over_inference(data), data) == 2
    assert data["runs"][0]["inference"] == 0.003
    assert data["runs"][1]["sparsity"] == pytest.approx(0.25)
    assert marks(finals.over_sparsity(data), data) == 1
    gates = scalars.gates(data)
    assert gates is not None
    assert "2 " not in gates.caption
    assert "1 runs" in gates.caption


def test_weights_that_have_been_read_are_shown_norm_corrected(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    read, damaged, _ = made.arm("none", [2.9, 2.91, 2.92])
    terms = [
        {"name": name, "weight": 1.0, "rms": 2.0, "share": share} for name, share in (("stream", 0.75), ("x00", -0.25))
    ]
    sums = [
        {"mechanism": mechanism, "layer": layer, "terms": terms} for mechanism in ("mix", "unet") for layer in (0, 1)
    ]
    for run, shares in ((read, sums), (damaged, [{"mechanism": "mix"}])):
        run.inspection.mkdir()
        run.inspection_json.write_text(json.dumps({"shares": shares}))
    data = tables.of(made.read())
    found = [(row["point"], row["layer"], row["weight"], row["value"]) for row in data["shares"]]
    assert found == [(0, layer, name, share) for layer in (0, 1) for name, share in (("stream", 0.75), ("x00", -0.25))]
    shown = scalars.shares(data)
    assert marks(shown, data) == 4
    assert shown is not None
    assert [panel["title"] for panel in page.spec(shown)["concat"]] == ["stream", "x00"]


def test_values_of_a_layer_have_an_outline_where_it_says_more_than_they_do(tmp_path: Path) -> None:
    """From three on, and not where they are all the same: a single point has no density."""
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.93])
    for layer, values in ((0, (0.1, 0.2, 0.4)), (2, (0.1, 0.2)), (5, (0.3, 0.3, 0.3)), (7, (-0.5, -0.5, -0.4, 0.1))):
        for i, value in enumerate(values):
            made.arm(f"{layer}-{i}", [2.92], sources=[layer], lambdas={f"lambda/skip/{layer}": value})
    data = tables.of(made.read())
    figure = scalars.skips(data)
    svg = drawing(figure, data)
    assert svg.count('aria-roledescription="point"') == 12
    assert svg.count('fill="#999"') == 2, "of layers 0 and 7"
    assert figure is not None
    assert "n = 12; 12 runs" in figure.caption


def test_equal_values_stand_in_the_middle_of_their_axis(tmp_path: Path) -> None:
    for value in (0.0, -0.5):
        made = Made(tmp_path / str(value), baseline="none")
        made.arm("2", [2.92, 2.93], sources=[2], lambdas={"lambda/skip/2": value})
        figure = scalars.skips(tables.of(made.read()))
        assert figure is not None
        low, high = page.spec(figure)["layer"][0]["encoding"]["y"]["scale"]["domain"]
        assert low < value < high
        assert low + high == pytest.approx(2 * value)


def test_one_ordering_can_be_chosen(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.93])
    for method, values in (("random", (0.1, 0.2, 0.4)), ("early_to_late", (-0.1, -0.3))):
        for i, value in enumerate(values):
            weights = {"lambda/skip/0": value, "lambda/skip/1": value + 0.05}
            tags = [f"multi_layer/{method}/N=2"]
            made.arm(f"{method}{i}", [2.92], sources=[0, 1], tags=tags, lambdas=weights)
    data = tables.of(made.read())
    figure = scalars.skips(data)
    shown = {
        choice: [drawing(figure, data, ordering=choice).count(mark) for mark in ('n="point"', 'fill="#999"')]
        for choice in (None, "random", "early_to_late")
    }
    assert shown == {None: [10, 2], "random": [6, 2], "early_to_late": [4, 0]}


def test_an_untrained_model_does_not_press_the_arms_together(tmp_path: Path) -> None:
    """The axis is that of what follows the first quarter of the steps; where nothing does, of what there is."""
    data = tables.of(single_layers(tmp_path))
    figure = curves.over_steps(data)
    assert figure is not None
    domains = [layer["encoding"]["y"]["scale"] for layer in page.spec(figure)["layer"] if "y2" not in layer["encoding"]]
    low, high = domains[0]["domain"]
    losses = [row["loss"] for row in data["curves"]]
    settled = [row["loss"] for row in data["curves"] if row["step"] >= 25]
    assert max(losses) > max(settled) + 0.1, "control"
    margin = 0.1 * (max(settled) - min(settled))
    assert min(settled) - margin < low < min(settled)
    assert max(settled) < high < max(settled) + margin
    assert all(layer["mark"]["clip"] for layer in page.spec(figure)["layer"])
    first = next(row for row in data["curves"] if row["step"] == 0)
    begun = curves.over_steps({**data, "curves": [first]})
    assert begun is not None
    assert "domain" not in page.spec(begun)["layer"][1]["encoding"]["y"]["scale"], "a point has no extent"


def test_the_line_of_the_baseline_is_named(tmp_path: Path) -> None:
    data = tables.of(single_layers(tmp_path))
    assert drawing(finals.over_distance(data), data).count(">baseline's mean<") == 1
    assert drawing(finals.per_layer(data), data).count(">baseline's mean<") == 2, "in each of two panels"
    for row in data["runs"]:
        row.pop("baseline")
    assert ">baseline's mean<" not in drawing(finals.over_distance(data), data)


def test_weights_at_the_head_that_belong_to_no_layer_are_drawn(tmp_path: Path) -> None:
    """The stream's, an embedding's, and of imported logs the only one that they tell."""
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.93])
    weights = {
        "lambda/x": 1.1,
        "lambda/skip": -0.2,
        "lambda/skip/input": 0.1,
        "lambda/skip/3": 0.4,
        "lambda/unet/1-2": 1.0,
    }
    made.arm("one", [2.92, 2.91], sources=["input", 3], lambdas=weights)
    data = tables.of(made.read())
    assert {row["weight"] for row in data["readout"]} == {"x", "skip", "skip/input"}
    assert [row["value"] for row in data["readout"] if (row["point"], row["weight"]) == (1, "x")][-1] == 1.1
    assert drawing(scalars.readout(data), data).count('aria-roledescription="line mark"') == 6


def test_schedules_are_thinned_to_their_last_step(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.9], steps=2000, validations=1001)
    data = tables.of(made.read())
    assert len(data["rates"]) <= tables.MOST_RATES
    assert data["rates"][-1]["step"] == 2000
    assert curves.rates(data) is not None


def test_the_page_is_alone_and_holds_its_data_once(tmp_path: Path) -> None:
    written = page.write(single_layers(tmp_path), says(counts={"planned": 7, "done": 6}), tmp_path / "report")
    text = written.read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", text.split("<script>")[0])
    assert "<link" not in text.split("<script>")[0]
    assert "default-src 'none'" in text, "the browser is told to fetch nothing"
    assert text.count('id="data"') == 1
    assert text.count('"command":"python launch.py') == 7, "one row per point, in no figure again"
    assert "not finished" in text
    assert sorted(p.stem for p in (tmp_path / "report/figures").iterdir()) == sorted(
        figure.name for figure in figures.drawn(tables.of(single_layers(tmp_path)))
    )


def test_text_from_folders_cannot_become_markup(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    made = Made(tmp_path, baseline="none", question=evil)
    made.arm("none", [2.9])
    made.point(evil, 0, made.points[0]["run"])
    evidence = made.read()
    findings = says(
        answer=evil, warnings=[evil], sheets=[Sheet("evil", evil, [{evil: evil, "missing": None}])], counts={evil: 1}
    )
    text = page.html(evidence, findings, data := tables.of(evidence), figures.drawn(data))
    assert "<img" not in text.split("<script>")[0]
    assert text.split('id="data">')[1].split("</script>")[0].startswith('{"runs"')
    assert json.loads(text.split('id="data">')[1].split("</script>")[0]) == data


def test_nothing_repeats_an_imported_run(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.9])
    made.arm("log", [2.8], imported=True)
    assert {row["arm"]: "command" in row for row in tables.of(made.read())["runs"]} == {"none": True, "log": False}


def test_the_command_is_quoted_for_a_shell(tmp_path: Path) -> None:
    [*_, point] = orderings(tmp_path).points
    assert tables.command(point) == "python launch.py 'skip_layers.layers=[0,1,2]' seed=0"
