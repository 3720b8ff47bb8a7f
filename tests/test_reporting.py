"""The report: one file that holds everything, asks for nothing and runs nobody's script."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import full_size
import pytest
from test_figures import chosen, results, scores  # noqa: F401 (fixtures)

import neuronforget as nf
from neuronforget.errors import InputError
from neuronforget.findings import describe
from neuronforget.findings.closeups import Closeups, Highlight
from neuronforget.reporting.reports import _asked
from neuronforget.reporting.tables import certificates_table, controls_table, made_table, results_table
from neuronforget.results import Results


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text += data


@pytest.fixture
def page(results: Results, scores: nf.Scores, chosen: nf.Neurons, tmp_path: Path) -> Page:  # noqa: F811
    shifts = {"ablate": {"forget": [1.0, 2.0, 3.0], "retain": [0.0, 0.0, 0.0]}}
    extras = {"truth": chosen, "controls": [chosen.random_like(0)], "shifts": shifts, "findings": ["It found this."]}
    found = nf.report(results, tmp_path / "report.html", scores=scores, neurons=chosen, **extras)  # type: ignore[arg-type]
    return Page(found)


def test_every_figure_has_words_a_table_and_a_role(page: Page) -> None:
    shown = [attrs for tag, attrs in page.tags if tag == "figure"]
    assert len(shown) == 7 and all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in shown)
    assert [tag for tag, _ in page.tags].count("details") == 7
    for heading in ("Frontier", "Map of the neurons", "Rank profile", "by layer", "activations moved"):
        assert heading in page.text
    assert "It found this." in page.text


def test_sections_come_in_the_order_in_which_one_asks(tmp_path: Path) -> None:
    page = full_size.pages(tmp_path, width=60)["report"].read_text()
    order = [
        "What was asked", "Verdict", "Numbers", "Forgetting against damage", "Where the knowledge lies",
        "What the edits moved", "What is left", "Neuron cards", "Controls", "Certificate", "How to reproduce this",
    ]  # fmt: skip
    assert re.findall("<h2 .*>(.+)</h2>", page) == order


def test_the_report_asks_no_other_host(page: Page, tmp_path: Path) -> None:
    for tag, attrs in page.tags:
        for key in ("src", "href", "action", "data"):
            assert attrs.get(key) is None or attrs[key].startswith("#"), (tag, attrs)
    assert not any(tag in ("link", "iframe", "img", "base") for tag, _ in page.tags)
    whole = (tmp_path / "report.html").read_text()
    assert "url(" not in re.findall(r"<style>(.*?)</style>", whole, re.S)[0]
    assert whole.count("plotly.js v") == 1 and "sendChartToCloud" in whole


def test_no_results_make_an_empty_report_and_no_error(tmp_path: Path) -> None:
    page = Page(nf.report(Results((), (), {"seed": 0}), tmp_path / "empty.html"))
    assert "How to reproduce this" in page.text and "Controls" not in page.text and "Verdict" not in page.text


def test_corpora_are_named_by_role_and_not_by_their_place(results: Results, tmp_path: Path) -> None:  # noqa: F811
    corpora = {"retain": {"name": "people", "digest": "1e"}, "forget": {"name": "people", "digest": "0f"}}
    info = {**results.info, "data": {"people": "1e"}, "corpora": corpora}
    text = Page(nf.report(replace(results, info=info), tmp_path / "report.html")).text
    assert text.count("people (9 examples") == 2 and all(digest in text for digest in ("0f", "1e"))


def test_what_is_to_go_is_shown_by_an_example_cut_where_it_is_long(results: Results) -> None:  # noqa: F811
    for said, words in (("A  short\none ", 'for example "A short one"'), ("\u4e2d" * 400, "\u4e2d" * 300 + ' ..."')):
        near = Closeups({}, {}, (Highlight((said,), (0.0,)),), ())
        assert dict(_asked(results, None, None, near))["Forget"].endswith(words)


def test_results_of_a_benchmark_have_no_request(results: Results, tmp_path: Path) -> None:  # noqa: F811
    named = {"edit": "model", "metric": "rouge"}
    rows = tuple(r | named for r in results.rows if r["edit"] == "untouched" and r["metric"] == "exact_match")
    data = {"retain": "1e", "forget": "0f", "real_authors": "2a"}
    text = Page(nf.report(Results(rows, (), {"seed": 0, "model": "m", "data": data}), tmp_path / "suite.html")).text
    asked = text.rpartition("What was asked")[2].partition("Numbers")[0]
    assert "Model" in asked and not any(word in asked for word in ("Forget", "Keep", "Target", "examples"))


def test_results_alone_make_a_report(results: Results, tmp_path: Path) -> None:  # noqa: F811
    page = Page(nf.report(results, tmp_path / "alone.html"))
    assert "Frontier" in page.text and "Map of the neurons" not in page.text
    assert "Before any edit, the model answers" in page.text  # findings are read off the results by default
    assert "Verdict" not in Page(nf.report(results, tmp_path / "mute.html", findings=())).text
    told = Page(nf.report(results, tmp_path / "told.html", findings=describe(results))).text
    assert "Before any edit, the model answers" in told


def test_a_part_of_the_results_is_told_without_the_rest(results: Results, tmp_path: Path) -> None:  # noqa: F811
    about = {name: {"method": name} for name in ("ablate", "npo")}
    own = replace(results, info={**results.info, "edits": about, "certificates": {}})
    part = own.only(edits=["npo"], metrics=["exact_match", "nll"])
    named = {row["edit"]: row["scope"] for row in part.rows}
    assert {name for name, scope in named.items() if scope != "reference"} == {"npo"}
    assert {"untouched", "gold"} <= named.keys() and part.info["edits"] == {"npo": {"method": "npo"}}
    assert {row["edit"] for row in part.examples} <= named.keys()
    assert part.value("npo", "forget") == results.value("npo", "forget") and set(about) == set(own.info["edits"])
    text = Page(nf.report(part, tmp_path / "part.html")).text
    assert "npo" in text and "ablate" not in text and own.only().rows == own.rows
    for name in ({"edits": ["nop"]}, {"corpora": "forgot"}, {"metrics": ["f1"]}, {"points": ["half"]}):
        with pytest.raises(InputError, match=r"no (edit|corpus|metric|point) '\w+' in these results; there are "):
            own.only(**name)


def test_a_report_of_any_rows_leaves_out_what_they_do_not_hold(results: Results, tmp_path: Path) -> None:  # noqa: F811
    """Rows are drawn at random: each report is either whole or shorter, never an error."""
    generator, sentences = random.Random(0), set()
    for _ in range(20):
        rows = tuple(row for row in results.rows if generator.random() < 0.8)
        text = Page(nf.report(replace(results, rows=rows), tmp_path / "part.html")).text
        sentences.add("Before any edit, the model answers" in text)
    assert sentences == {True, False}


def test_the_table_gives_values_with_their_intervals(results: Results) -> None:  # noqa: F811
    table = results_table(results, "full", ("exact_match",))
    assert table.columns == ("edit", "forget: accuracy (exact match)", "retain: accuracy (exact match)")
    assert dict((row[0], row[1:]) for row in table.rows)["npo"] == ("0.350 [0.33, 0.38]", "0.360 [0.34, 0.39]")


def test_nan_is_shown_and_counted_and_not_called_forgotten(results: Results, tmp_path: Path) -> None:  # noqa: F811
    broken = [
        row | {"value": float("nan"), "low": float("nan"), "high": float("nan"), "nan": 9}
        if row["edit"] == "npo"
        else row
        for row in results.rows
    ]
    page = Page(nf.report(replace(results, rows=tuple(broken)), tmp_path / "nan.html"))
    assert "NaN (9 of 9)" in page.text and "36 values are NaN" in page.text


def test_scores_and_neurons_of_another_model_are_refused(
    results: Results,  # noqa: F811
    scores: nf.Scores,  # noqa: F811
    tmp_path: Path,
) -> None:
    layers, width = scores.values.shape
    of = replace(results, info={**results.info, "shape": [layers, width], "model": "one"})
    other = nf.Neurons(frozenset(), scores.layers, width + 1)
    for found, given in (
        (replace(of, info={**of.info, "shape": [layers, 2 * width]}), {"scores": scores}),
        (of, {"scores": scores, "neurons": other}),
        (results, {"scores": scores, "neurons": other}),
    ):
        with pytest.raises(nf.InputError, match=f"are of a model of {layers} layers of .*: give those of one model"):
            nf.report(found, tmp_path / "report.html", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "report.html").exists()
    named = replace(scores, info={"forget": {"model": "another"}})
    with pytest.warns(match="the results are of the model 'one', the scores of 'another'"):
        nf.report(of, tmp_path / "report.html", scores=named)


def test_names_cannot_run_as_script(results: Results, tmp_path: Path) -> None:  # noqa: F811
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    rows = tuple(row | {"edit": evil} if row["edit"] == "npo" else row for row in results.rows)
    made = nf.report(Results(rows, (), {**results.info, "model": evil}), tmp_path / "evil.html", findings=[evil])
    page = Page(made)
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "<script>alert" not in made.read_text()


def test_an_unwritable_path_is_said_and_leaves_nothing(results: Results, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        nf.report(results, tmp_path / "file" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_report_that_fails_leaves_the_old_one(
    results: Results,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = nf.report(results, tmp_path / "report.html")
    before = path.read_text()
    monkeypatch.setattr("jinja2.Environment.get_template", None)  # the drawing fails, not the asking
    with pytest.raises(TypeError):
        nf.report(results, path)
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_equal_results_make_equal_reports(results: Results, scores: nf.Scores, tmp_path: Path) -> None:  # noqa: F811
    one, other = (nf.report(results, tmp_path / f"{i}.html", scores=scores).read_bytes() for i in range(2))
    assert one == other


def test_a_metric_of_ones_own_is_shown_alone_and_beside_the_others(results: Results, tmp_path: Path) -> None:  # noqa: F811
    mine = [row | {"metric": "my_metric", "value": 0.123, "low": 0.1, "high": 0.2} for row in results.rows]
    beside = Page(nf.report(replace(results, rows=(*results.rows, *mine)), tmp_path / "beside.html"))
    assert "my_metric" in beside.text and "0.123 [0.10, 0.20]" in beside.text and "Frontier" in beside.text
    alone = Page(nf.report(replace(results, rows=tuple(mine)), tmp_path / "alone.html"))
    assert "0.123 [0.10, 0.20]" in alone.text and "Frontier" not in alone.text


def test_a_control_is_held_against_the_edit_of_its_method_on_the_same_examples(results: Results) -> None:  # noqa: F811
    values = {"ablate": [0.0, 0.0, 1.0, 0.0, 0.0, 1.0], "ablate@random 0": [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]}
    examples = tuple(
        {
            "edit": name,
            "point": "full",
            "corpus": "forget",
            "metric": "exact_match",
            "example": i,
            "unit": i,
            "value": v,
        }
        for name, column in values.items()
        for i, v in enumerate(column)
    )
    table = controls_table(replace(results, examples=examples), "exact_match", "full")
    assert table is not None
    assert table.columns[:4] == ("control", "compared with the edit", "control: forget", "edit: forget")
    assert table.caption.startswith("Each control beside the edit that uses the same method on the chosen neurons.")
    (row,) = table.rows
    value, low, high = replace(results, examples=examples).paired("ablate@random 0", "ablate", "forget")
    assert value == 0.5 and row == ("ablate@random 0", "ablate", "0.450", "0.250", f"+0.500 [{low:+.2f}, {high:+.2f}]")
    (alone,) = controls_table(results, "exact_match", "full").rows  # type: ignore[union-attr]
    assert alone[-1] == "+0.200"
    rows = tuple(r for r in results.rows if r["scope"] != "control")
    assert controls_table(replace(results, rows=rows), "exact_match", "full") is None


@pytest.mark.parametrize("name", ["ablate, random", "npo@random 0", "grad_diff@random 0"])
def test_a_control_without_an_edit_of_neurons_of_its_method_is_held_against_none(name: str, results: Results) -> None:  # noqa: F811
    rows = tuple(r | {"edit": name} if r["scope"] == "control" else r for r in results.rows)
    assert controls_table(replace(results, rows=rows), "exact_match", "full") is None


def test_controls_are_compared_at_matched_damage_where_it_was_measured(results: Results, tmp_path: Path) -> None:  # noqa: F811
    at_full = Page(nf.report(results, tmp_path / "full.html"))
    assert "at full strength, as matched damage was not measured" in at_full.text and "+0.200" in at_full.text
    left = {"ablate": 0.3, "ablate@random 0": 0.34}
    more = [r | {"point": "matched", "value": left[r["edit"]]}
            for r in results.rows if r["edit"] in left and r["point"] == "full"]  # fmt: skip
    matched = Page(nf.report(replace(results, rows=(*results.rows, *more)), tmp_path / "matched.html"))
    assert "on other neurons, at matched damage." in matched.text
    assert "+0.040" in matched.text and "+0.200" not in matched.text


def test_controls_are_compared_by_what_is_left_alone(results: Results, tmp_path: Path) -> None:  # noqa: F811
    rows = tuple(r for r in results.rows if r["metric"] == "nll")
    assert "Controls" not in Page(nf.report(replace(results, rows=rows), tmp_path / "nll.html")).text


def test_a_certificate_that_does_not_hold_is_not_overlooked() -> None:
    held = {"holds": True, "inside_values": 3, "outside_values": 7000, "outside_equal": True, "undone_equal": True}
    broken = held | {"holds": False, "outside_equal": False, "training_equal": True}
    table = certificates_table({"one": held | {"training_equal": None}, "two": broken})
    assert table is not None and table.rows[0] == ("one", "yes", "3", "7,000", "yes", "yes", "not trained")
    assert table.rows[1] == ("two", "NO", "3", "7,000", "NO", "yes", "yes") and certificates_table({}) is None


def test_the_report_says_how_each_edit_was_made(results: Results, tmp_path: Path) -> None:  # noqa: F811
    made = {"npo": {"method": "finetune:npo", "steps": 60, "lr": 3e-4, "seed": 5, "values": 12345, "relative": 0.0123}}
    page = Page(nf.report(replace(results, info={**results.info, "edits": made}), tmp_path / "report.html"))
    assert all(word in page.text for word in ("finetune:npo", "12,345", "0.0123", "0.0003"))


def test_one_edit_of_a_kind_is_not_called_several(tmp_path: Path) -> None:
    text = full_size.pages(tmp_path, width=60)["report"].read_text()
    assert "2 on chosen neurons, 2 of the whole model, 1 guard, 3 controls" in text


def test_what_an_edit_s_name_says_is_explained_where_names_say_it(results: Results, tmp_path: Path) -> None:  # noqa: F811
    said = "what follows the @ says where the edit works"
    assert said in full_size.pages(tmp_path, width=60)["report"].read_text()
    plain = replace(results, rows=tuple(row for row in results.rows if "@" not in row["edit"]))
    assert plain.rows and said not in nf.report(plain, tmp_path / "plain.html").read_text()


def test_counts_of_an_edit_are_read_by_thousands_and_its_seed_is_not() -> None:
    table = made_table({"npo": {"method": "finetune:npo", "values": 1161600, "lr": 3e-4, "seed": 20261130}})
    assert table and {"1,161,600", "0.0003", "20261130"} <= set(table.rows[0])
