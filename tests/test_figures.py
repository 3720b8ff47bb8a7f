"""Figures show the numbers that they were given."""

from __future__ import annotations

import full_size
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neuronforget import figures
from neuronforget.errors import InputError
from neuronforget.figures.map import binned
from neuronforget.figures.style import looks
from neuronforget.neurons import Neurons
from neuronforget.reporting.pictures import comparison_pictures
from neuronforget.reporting.tables import results_table
from neuronforget.results import Results
from neuronforget.scores import Scores


@pytest.fixture
def scores() -> Scores:
    values = torch.randn((3, 1300), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Scores(values, "grad_x_act", "positive: matters", (0, 1, 2))


@pytest.fixture
def chosen() -> Neurons:
    return Neurons(frozenset({(0, 4), (2, 1299)}), (0, 1, 2), 1300)


@pytest.fixture
def results() -> Results:
    rows = []
    edits = {
        "untouched": "reference",
        "gold": "reference",
        "ablate": "neurons",
        "npo": "full",
        "ablate@random 0": "control",
    }
    for i, (name, scope) in enumerate(edits.items()):
        for strength, point in ((1.0, "full"), (0.5, "frontier")) if scope != "reference" else ((0.0, "full"),):
            for corpus in ("forget", "retain"):
                for metric in ("exact_match", "nll"):
                    value = 0.1 * i + 0.05 * strength + 0.01 * (corpus == "retain")
                    row = {"edit": name, "scope": scope, "strength": strength, "point": point, "corpus": corpus}
                    rows.append(
                        row
                        | {
                            "metric": metric,
                            "value": value,
                            "low": value - 0.02,
                            "high": value + 0.03,
                            "n": 9,
                            "nan": 0,
                        }
                    )
    return Results(tuple(rows), (), {"seed": 0, "damage_budget": None})


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, (2, 37), elements=st.floats(-5, 5)), st.integers(1, 40))
def test_each_cell_shows_the_value_of_largest_magnitude_among_its_neurons(values: np.ndarray, bins: int) -> None:
    cells, size = binned(values, bins)
    assert cells.shape[1] <= max(bins, 1)
    for layer in range(2):
        for i, cell in enumerate(cells[layer]):
            own = values[layer, i * size : (i + 1) * size]
            assert abs(cell) == np.abs(own).max() and cell in own


def test_the_map_has_layer_0_at_the_bottom_is_symmetric_and_says_that_it_is_binned(
    scores: Scores, chosen: Neurons
) -> None:
    figure = figures.attribution_map(scores, chosen)
    heat, marks = figure.data
    assert list(heat.y) == ["0", "1", "2"] and figure.layout.yaxis.autorange != "reversed"
    assert heat.zmin == -heat.zmax and heat.zmid == 0
    assert heat.zmax == pytest.approx(np.quantile(np.abs(scores.values.numpy()), figures.QUANTILE))
    assert "3 to a cell" in figure.layout.xaxis.title.text
    assert list(zip(marks.y, marks.x, marks.customdata, strict=True)) == [("0", 3, 4), ("2", 1299, 1299)]


def test_at_full_size_every_picture_is_light_and_the_map_keeps_every_layers_extreme_with_its_sign() -> None:
    found = full_size.scores()
    made = full_size.pictures(found)
    density = made[3].figure
    assert density.data[0].colorbar.ticktext == ("1", "10", "100", f"{int(density.data[0].customdata.max()):,}")
    assert density.data[-1].marker.size == 4 and density.data[-1].marker.opacity < 1
    assert len(made) == 15 and max(len(picture.json) for picture in made) < 300_000
    cells = made[0].figure.data[0].z
    extreme = found.values.abs().argmax(1, keepdim=True)
    largest = np.take_along_axis(cells, np.abs(cells).argmax(1)[:, None], 1)
    np.testing.assert_array_equal(largest, found.values.gather(1, extreme).numpy())
    assert made[0].figure.data[1].name == "selected (2,000 of 22,944 marked)"
    crosses = [trace for trace in made[1].figure.data if trace.mode == "markers"]
    drawn = sum(len(trace.x) for trace in crosses[:-1])
    assert 0 < drawn < 22_944 and crosses[-1].name == f"true neuron ({drawn:,} of 22,944 marked)"


def test_narrow_layers_are_drawn_neuron_by_neuron(scores: Scores) -> None:
    small = Scores(scores.values[:, :100], "s", "", (0, 1, 2))
    heat = figures.attribution_map(small).data[0]
    np.testing.assert_array_equal(heat.z, small.values.numpy())


def test_the_rank_profile_falls_and_marks_true_neurons_at_their_rank(scores: Scores, chosen: Neurons) -> None:
    lines = [t for t in figures.rank_profile(scores, chosen).data if t.mode == "lines"]
    marks = [t for t in figures.rank_profile(scores, chosen).data if t.mode == "markers"]
    for layer, line in enumerate(lines):
        falling = np.sort(scores.values[layer].numpy())[::-1]
        np.testing.assert_array_equal(line.y, falling[np.array(line.x) - 1])
        assert (line.x[0], line.x[-1]) == (1, 1300) and np.diff(np.log(line.x)).max() <= np.log(2)
    value = float(scores.values[0, 4])
    assert list(marks[0].x) == [int((scores.values[0] > value).sum()) + 1] and list(marks[0].y) == [value]
    assert len(marks[1].x) == 0 and marks[-1].name == "true neuron" and len(marks) == 4


def test_the_layer_share_counts_selected_and_true_neurons(chosen: Neurons) -> None:
    truth = Neurons(frozenset({(0, 4), (1, 7)}), (0, 1, 2), 1300)
    controls = [chosen.random_like(seed) for seed in range(3)]
    bars = {bar.name: list(bar.x) for bar in figures.layer_share(chosen, controls, truth).data}
    assert (
        bars["selected"] == [1, 0, 1] and bars["true neurons"] == [1, 1, 0] and bars["selected and true"] == [1, 0, 0]
    )


def test_of_one_control_the_layer_share_draws_no_range(chosen: Neurons) -> None:
    truth = Neurons(frozenset({(0, 4), (1, 7)}), (0, 1, 2), 1300)
    one, three = (
        figures.layer_share(chosen, [chosen.random_like(i) for i in range(n)], truth).data[-1] for n in (1, 3)
    )
    assert (one.name, one.error_x.array) == ("true in the control", None)
    assert three.name == "true in 3 controls (mean, range)" and len(three.error_x.array) == 3


def test_the_frontier_leads_every_edit_from_the_untouched_model_to_full_strength(results: Results) -> None:
    lines = {trace.name: trace for trace in figures.frontier(results).data}
    assert set(lines) == {"untouched", "gold", "ablate", "npo", "ablate@random 0"}
    for i, name in enumerate(("ablate", "npo"), start=2):
        assert list(lines[name].customdata) == [0.0, 0.5, 1.0]
        np.testing.assert_allclose(lines[name].y, [0.0, 0.1 * i + 0.025, 0.1 * i + 0.05])
        np.testing.assert_allclose(lines[name].x, [0.01, 0.1 * i + 0.035, 0.1 * i + 0.06])
        np.testing.assert_allclose(lines[name].error_y.array, [0, 0, 0.03])
    assert len(lines["gold"].x) == 1


def test_the_frontier_of_losses_draws_the_rise_over_the_untouched_model(results: Results) -> None:
    figure = figures.frontier(results, retain_metric="nll")
    line = next(trace for trace in figure.data if trace.name == "ablate")
    np.testing.assert_allclose(line.x, [1e-4, 0.225, 0.25])
    assert figure.layout.xaxis.type == "log"


def test_the_table_of_losses_gives_the_rise_that_is_drawn(results: Results) -> None:
    (picture, _) = (p for p in comparison_pictures(results) if p.title.startswith("Frontier"))
    assert picture.table.columns[-1] == "rise of the retain loss (nats/token)"
    line = next(trace for trace in picture.figure.data if trace.name == "ablate")
    cells = [row[-1] for row in picture.table.rows if row[0] == "ablate"]
    assert cells == [f"{x:+.4f}" for x in line.x[1:]]
    assert [row[-1] for row in picture.table.rows if row[0] == "untouched"] == ["+0.0000"]
    broken = [r | {"value": float("nan"), "nan": 9} if r["edit"] == "npo" else r for r in results.rows]
    rows = comparison_pictures(Results(tuple(broken), (), results.info))[0].table.rows
    assert {row[-1] for row in rows if row[0] == "npo"} == {"NaN (9 of 9)"}


def test_pictures_are_drawn_in_the_measure_of_the_findings(results: Results) -> None:
    """Of a model that writes no long answer exactly, lines of accuracy would lie on zero."""
    known = [
        r | {"value": 0.5} if (r["edit"], r["metric"]) == ("untouched", "exact_match") else r for r in results.rows
    ]
    other = [r | {"metric": "probability"} for r in results.rows if r["metric"] == "exact_match"]
    for rows, words in ((known, "accuracy (exact match)"), (list(results.rows), "probability of the answer")):
        unseen = [r | {"corpus": "forget unseen"} for r in (*rows, *other) if r["corpus"] == "forget"]
        found = Results((*rows, *unseen, *other), (), results.info)
        made = comparison_pictures(found)
        assert results_table(found, "full").columns[1] == f"forget: {words}"
        titles = [picture.title for picture in made]
        assert titles[1] == f"Frontier in {words.split()[0]}" and len(titles) == 3
        assert made[0].figure.layout.yaxis.title.text == made[0].table.columns[2] == f"forget: {words}"
        assert made[2].figure.layout.xaxis.title.text == words or words in str(made[2].figure.layout)
        assert made[2].table.columns == (
            "edit",
            *(f"{corpus}: {words}" for corpus in ("forget", "retain", "forget unseen")),
        )
        assert made[2].caption.lower().startswith(words.split()[0])


def test_dots_of_what_was_not_measured_are_refused(results: Results) -> None:
    with pytest.raises(InputError, match="'exact_match' was not measured at 'full'"):
        figures.dots(results.only(metrics="nll"))


def test_dots_show_each_edit_on_each_corpus_with_its_interval(results: Results) -> None:
    traces = [trace for trace in figures.dots(results).data if trace.type == "scatter"]
    assert len(traces) == 2
    shown = dict(zip(traces[0].y, traces[0].x, strict=True))
    assert shown["npo"] == pytest.approx(0.35) and set(shown) == {
        "untouched",
        "gold",
        "ablate",
        "npo",
        "ablate@random 0",
    }
    np.testing.assert_allclose(traces[0].error_x.array, [0.03] * 5)
    assert list(traces[0].y)[-1] in ("untouched", "gold")


def test_the_shift_has_one_small_picture_an_edit_on_one_scale() -> None:
    shifts = {f"edit {i}": {"forget": [0.1 * i, 0.2], "retain": [0.0, 0.1]} for i in range(6)}
    figure = figures.activation_shift(shifts, (0, 3))
    assert [list(trace.x) for trace in figure.data] == [list(v) for s in shifts.values() for v in s.values()]
    assert {trace.xaxis for trace in figure.data} == {"x", *(f"x{i}" for i in range(2, 7))}
    assert [a.text for a in figure.layout.annotations][:6] == list(shifts)
    axes = [axis for name, axis in figure.layout.to_plotly_json().items() if name.startswith("xaxis")]
    assert (
        sum("matches" not in axis for axis in axes) == 1
        and sum(axis.get("showticklabels", False) for axis in axes) == 4
    )


def test_every_method_can_be_told_from_the_others_without_colour() -> None:
    found = looks({f"n{i}": "neurons" for i in range(7)} | {f"f{i}": "full" for i in range(7)})
    assert len({(look.marker, look.dash) for look in found.values()}) == 14
    many = looks({f"n{i}": "neurons" for i in range(49)})
    assert len({(look.marker, look.colour) for look in many.values()}) == 49


def test_names_with_mark_up_are_shown_and_not_read(results: Results) -> None:
    rows = tuple(row | {"edit": "<b>bold</b>"} if row["edit"] == "npo" else row for row in results.rows)
    names = {trace.name for trace in figures.frontier(Results(rows, (), results.info)).data}
    assert "&lt;b&gt;bold&lt;/b&gt;" in names
