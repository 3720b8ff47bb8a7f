"""Figures of the analyses: a mark for each number, where the number is; whiskers end where their interval does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from test_analyses import FOLDER, analysis

Place = tuple[float, float]


class Drawn:
    """An SVG, read: what is drawn in it, by kind."""

    def __init__(self, svg: str) -> None:
        self.nodes = list(ElementTree.fromstring(svg).iter())
        assert len(svg) < 300_000 and svg.count("http") == 1 and not re.search(r"href|script|url\(|nan", svg)
        assert self.nodes[0].get("role") == "img" and self.nodes[1].tag.endswith("title") and self.nodes[1].text

    def all(self, tag: str) -> list[ElementTree.Element]:
        return [node for node in self.nodes if node.tag.endswith(f"}}{tag}")]

    @property
    def words(self) -> list[str]:
        return ["".join(node.itertext()) for node in self.all("text")]

    def circles(self, hollow: bool | None = None) -> list[Place]:
        return [(float(n.get("cx", 0)), float(n.get("cy", 0))) for n in self.all("circle")
                if hollow is None or (n.get("fill") == "white") == hollow]  # fmt: skip

    def squares(self) -> list[Place]:
        """Middles of all squares; stripes and the ground are none."""
        found = [[float(n.get(key, 0)) for key in ("x", "y", "width", "height")] for n in self.all("rect")]
        return [(x + w / 2, y + h / 2) for x, y, w, h in found if w == h < 12]

    def marks(self) -> list[Place]:
        """Middles of all marks, of whatever shape."""
        corners = [list(zip(*points, strict=True)) for n in (3, 4) for points in self.polygons(n)]
        return [*self.circles(), *self.squares(), *(((min(x) + max(x)) / 2, (min(y) + max(y)) / 2) for x, y in corners)]

    def polygons(self, corners: int) -> list[list[Place]]:
        found = [[tuple(map(float, p.split(","))) for p in n.get("points", "").split()] for n in self.all("polygon")]
        return [points for points in found if len(points) == corners]  # type: ignore[misc]

    def line(self, x: float, x2: float, y: float | None = None) -> bool:
        """Is there a level line from x to x2?"""
        ends = [[float(n.get(key, 0)) for key in ("x1", "x2", "y1", "y2")] for n in self.all("line")]
        return any(e[:2] == pytest.approx([x, x2], abs=0.06) and e[2] == e[3] and y in (None, e[2]) for e in ends)


def scored(recall: float | None, spearman: float) -> dict[str, float]:
    return {"spearman": spearman, **({} if recall is None else {"recall@k": recall})}


def test_scores_are_ordered_by_what_they_find_and_controls_come_last() -> None:
    figure, cells = import_module("where_figure"), import_module("cells")
    values = {"random": (0.9, 0.0), "relp": (0.3, 0.9), "grad_x_act": (0.6, 0.5), figure.STAGED: (0.8, 0.4)}
    done = {}
    for seed, more in ((0, 0.0), (1, 0.02)):
        rows = [{"score": name, **scored(r + more, s)} for name, (r, s) in values.items()]
        done[f"grafted {seed}"] = {"rows": rows}
        done[f"ordinary {seed}"] = {"rows": [{"score": n, **scored(None, s)} for n, (_, s) in values.items()]}
    drawn = Drawn(figure.picture(done))
    names = [word for word in drawn.words if word in values]
    assert names == [figure.STAGED, "grad_x_act", "relp", "random"]
    assert len(drawn.circles()) == 3 + 2 * 3 and len(drawn.polygons(3)) == len(drawn.squares()) == 1 + 3
    at = import_module("drawing").scale(figure.LOW, figure.HIGH, figure.LEFT, figure.LEFT + figure.WIDE)
    mean, low, high = cells.centre([0.6, 0.62])
    assert drawn.line(at(low), at(high)) and low < 0.61 < high
    across = [x for x, y in drawn.circles(hollow=False)[2:]]  # the legend has two
    assert across == pytest.approx([at(mean), at(0.31)], abs=0.06)
    for rows in (done["grafted 0"]["rows"], done["ordinary 0"]["rows"]):
        rows[1] = {"score": "relp", "failed": "it cannot be had"}
    alone = Drawn(figure.picture({"ordinary 0": done["ordinary 0"]}))
    assert all(float(n.get("x", 0)) < figure.LEAST - 200 for n in alone.all("text"))  # the legend is not cut
    assert float(alone.nodes[0].get("width", 0)) == figure.LEAST
    one = Drawn(figure.picture({key: bed for key, bed in done.items() if key.endswith("0")}))
    assert one.words.count("not made") == 0 and "relp" not in one.words
    done["ordinary 0"]["rows"][1] = {"score": "relp", **scored(None, 0.9)}
    assert Drawn(figure.picture({k: v for k, v in done.items() if k.endswith("0")})).words.count("not made") == 1


def checked(outcomes: dict[str, str], verdict: str) -> dict[str, Any]:
    checks = [dict(zip(("probe", "corpus"), key.split(", "), strict=True), outcome=o) for key, o in outcomes.items()]
    return {"verdict": verdict, "checks": checks}


def test_each_check_of_each_seed_has_a_mark_that_is_told_apart_by_shape() -> None:
    hidden = analysis("erased_or_hidden")
    kinds = list(hidden.MARKS)
    keys = ["asked, forget", "choice, forget", "lens, forget"]
    seeds = []
    for seed in range(2):
        cases = {"gold": ["gone"] * 3, "npo": ["not known before", kinds[1 + seed], "gone"], "eco": ["left"] * 3}
        said = {"gold": "gone, as far as asked", "npo": ("suppressed", "unclear")[seed], "eco": "not erased"}
        found = {name: checked(dict(zip(keys, outcomes, strict=True)), said[name]) for name, outcomes in cases.items()}
        seeds.append({name: {"gold": case, "no gold": case} for name, case in found.items()})
    drawn = Drawn(hidden.picture(seeds))
    assert len(drawn.squares()) == 1 + 6 and len(drawn.polygons(3)) == 1 + 1
    assert len(drawn.circles(hollow=True)) == 1 + 1 and len(drawn.circles(hollow=False)) == 1 + 8
    dash = hidden.MARKS["not known before"][3]
    middle = hidden.LEFT + hidden.CELL / 2 - hidden.STEP / 2  # the first seed's, in the first column
    assert drawn.line(middle - dash, middle + dash, hidden.ABOVE + hidden.ROW * 1.5)
    assert {"gone", "suppressed (1), unclear (1)", "not erased", "no twin: not erased"} <= set(drawn.words)
    looks = [(marker, hollow) for _, marker, _, _, hollow in hidden.MARKS.values()]
    assert len(set(looks)) == len(looks)
    seeds[1]["npo"] = {"failed": "it diverged"}
    assert "npo" not in Drawn(hidden.picture(seeds)).words
    assert len(Drawn(hidden.picture(seeds[:1])).squares()) == 1 + 3
    assert Drawn(hidden.picture([{"npo": {"failed": "it diverged"}}])).words


def test_questions_stand_beside_the_facts_that_they_take_and_the_twin_s_values() -> None:
    figure, cells = import_module("follows_figure"), import_module("cells")
    row = {"forget": 0.1, "retain": 1.0, "own step": 0.2, "teacher's step": 0.9, "given back": 0.5}
    done = {f"ordinary {s}": {name: {k: v * (1 - s / 4) for k, v in row.items()} for name in ("untouched", "gold twin")}
            | {"npo": {"failed": "it diverged"} if s else row} for s in range(2)}  # fmt: skip
    drawn = Drawn(figure.picture(done, ["ordinary"], [0, 1]))
    assert len(drawn.circles()) == len(drawn.squares()) == len(drawn.polygons(3)) == len(drawn.polygons(4)) == 1 + 2
    assert drawn.words.count("not made") == 1
    at = import_module("drawing").scale(0, 1, figure.LEFT, figure.LEFT + figure.WIDE)
    mean, low, high = cells.centre([0.9, 0.675])
    assert low < 0 and high > 1 and drawn.line(at(0), at(1))  # cut at both ends
    assert sorted(x for x, _ in drawn.circles())[-1] == pytest.approx(at(cells.centre([0.1, 0.075])[0]), abs=0.06)
    upright = [n for n in drawn.all("line") if n.get("stroke-width") == "2.4"]
    assert len(upright) == 4 * 3 and mean == pytest.approx(0.7875)
    one = Drawn(figure.picture(done, ["ordinary"], [0]))
    assert len(one.circles()) == 1 + 3 and not one.line(at(0), at(1))


def test_operators_are_drawn_by_scope_forget_beside_retain() -> None:
    every = analysis("every_operator")

    def row(name: str, scope: str, *values: float) -> dict[str, Any]:
        return {"edit": name, "scope": scope, **dict(zip(("forget", "forget unseen", "retain"), values, strict=True))}

    seed = {
        "erasures": {"rows": [row("untouched", "reference", 0.8, 0.8, 1), row("gold", "reference", 0, 0.1, 1),
                              row("`ssd`, where it chooses", "own choice", 0.3, 0.4, 0.5),
                              row("`ablate` on the true neurons", "neurons", 0.0, 0.1, 0.9)], "failed": {}},
        "guards": {"rows": [row("untouched", "reference", 0.8, 0.8, 1), row("`eco`", "guard", 0, 0.4, 1),
                            row("`resample`, random neurons", "control", 0.6, 0.7, 0.9)], "failed": {"`icu`": "no"}},
    }  # fmt: skip
    drawn = Drawn(every.picture([seed]))
    assert any("one seed, so no bars" in words for words in drawn.words)
    asked = [name for name in drawn.words if name.split(",")[0].split()[0] in ("ssd", "ablate", "eco", "resample")]
    assert asked == ["ablate on the true neurons", "ssd, where it chooses", "eco", "resample, random neurons"]
    assert len(drawn.circles()) == len(drawn.squares()) == 1 + 3 and len(drawn.polygons(4)) == 1 + 2 * 3
    assert len(drawn.polygons(3)) == 2 * (1 + 3)
    at = import_module("drawing").scale(0, 1, every.LEFT, every.LEFT + every.WIDE)
    across = [x for x, _ in drawn.squares()[1:]]
    assert across == pytest.approx([at(0.4), at(0.3), at(0.5) + every.WIDE + every.GAP], abs=0.06)
    text = every.tables([seed])
    assert "| `ssd`, where it chooses | 0.30 | 0.40 | 0.50 |" in text and "- `icu`: no" in text and "scope" not in text


def test_requests_are_drawn_state_by_state_and_what_is_refused_is_left_out() -> None:
    undone = analysis("undone_alone")
    states = ["untouched", "A applied", "B applied", "C applied", "A undone alone", "made without A"]
    rows = [{"edit": "ablate", "state": s, "A": 1 - i / 10, "B": 1.0, "C": 0.5, "retain": 0.9}
            for i, s in enumerate(states)]  # fmt: skip
    refused: list[dict[str, Any]] = [
        *rows[:4],
        {"edit": "npo", "state": "A undone alone: refused", "why": "B was later"},
        rows[5],
    ]
    drawn = Drawn(undone.picture([{"ablate": rows, "npo": refused}]))
    assert any("one seed, so no bars" in words for words in drawn.words)
    assert len(drawn.circles(hollow=False)) == 1 + 5 + 4 and len(drawn.circles(hollow=True)) == 2
    assert "A undone: refused" in drawn.words and "A undone alone" in drawn.words
    assert "| npo | A undone alone: refused |  |  |  |  |" in undone.tables([{"npo": refused}])
    up = import_module("drawing").scale(0, 1, undone.ABOVE + undone.HIGH, undone.ABOVE)
    heights = [y for _, y in drawn.circles()[1:7]]
    assert heights == pytest.approx([up(row["A"]) for row in rows], abs=0.06)
    mine = [n for n in drawn.all("line") if n.get("stroke") == undone.LINES["A"][0] and n.get("stroke-width") == "1.6"]
    assert len(mine) == 4 + 3  # none leads to what was made without A


def test_requests_over_seeds_have_intervals_and_what_undoing_gives_is_held_against_other_states() -> None:
    undone, cells = analysis("undone_alone"), import_module("cells")
    states = ["untouched", "C applied", "A undone alone", "made without A"]

    def seed(b: float) -> dict[str, Any]:
        values = {"untouched": 1.0, "C applied": 0.0, "A undone alone": b, "made without A": 0.1}
        rows = [{"edit": "ablate", "state": s, "A": 1.0, "B": values[s], "C": 0.2, "retain": 1.0} for s in states]
        return {"ablate": rows}

    values = [0.3, 0.4, 0.5]
    seeds = [seed(b) for b in values]
    text, drawn = undone.tables(seeds), Drawn(undone.picture(seeds))
    assert f"| ablate | A undone alone | 1.00 ± 0.00 | {cells.cell(values)} | 0.20 ± 0.00 | 1.00 ± 0.00 |" in text
    assert f"| ablate | less C applied | 0.00 ± 0.00 | **{cells.cell(values)}** |" in text
    assert f"| ablate | less made without A | 0.00 ± 0.00 | **{cells.cell([0.2, 0.3, 0.4])}** |" in text
    up = import_module("drawing").scale(0, 1, undone.ABOVE + undone.HIGH, undone.ABOVE)
    mean, low, high = cells.centre(values)
    across = next(x for x, y in drawn.squares() if y == pytest.approx(up(mean), abs=0.06))
    bars = [[float(n.get(key, 0)) for key in ("x1", "x2", "y1", "y2")] for n in drawn.all("line")]
    assert any(bar == pytest.approx([across, across, up(low), up(high)], abs=0.06) for bar in bars)
    # what one seed refuses is counted, and what undoing should give stays the last, hollow
    gone = [row for row in seeds[0]["ablate"] if row["state"] != "A undone alone"]
    refused = {"edit": "ablate", "state": "A undone alone: refused", "why": "B was later"}
    seeds[0]["ablate"] = [*gone[:2], refused, gone[2]]
    text, drawn = undone.tables(seeds), Drawn(undone.picture(seeds))
    assert "| ablate | A undone alone (2 of 3) |" in text and "| ablate | less untouched (2 of 3) |" in text
    assert "| ablate | A undone alone: refused (1 of 3) |  |  |  |  |" in text
    hollow = {x for x, _ in drawn.circles(hollow=True)}
    assert len(hollow) == 1 and max(x for x, _ in drawn.circles()) in hollow


def test_operators_over_seeds_have_intervals_and_count_the_seeds_where_one_could_not_be_made() -> None:
    every, cells = analysis("every_operator"), import_module("cells")

    def seed(value: float) -> dict[str, Any]:
        same = {"forget unseen": 0.5, "retain": 1.0}
        rows = [{"edit": "untouched", "scope": "reference", "forget": value / 2 + 0.6, **same},
                {"edit": "`ssd`", "scope": "own choice", "forget": value, **same}]  # fmt: skip
        return {"erasures": {"rows": rows, "failed": {}}, "guards": {"rows": rows[:1], "failed": {}}}

    values = [0.1, 0.3, 0.5]
    seeds = [seed(value) for value in values]
    text, drawn = every.tables(seeds), Drawn(every.picture(seeds))
    less = cells.cell([-0.55, -0.45, -0.35])
    assert text.count("(3 seeds)") == 2 and "| retain | forget, less untouched |" in text
    assert f"| `ssd` | {cells.cell(values)} | 0.50 ± 0.00 | 1.00 ± 0.00 | **{less}** | 0.00 ± 0.00 |" in text
    at = import_module("drawing").scale(0, 1, every.LEFT, every.LEFT + every.WIDE)
    mean, _, high = cells.centre(values)
    assert drawn.line(at(0), at(high)) and drawn.squares()[-2][0] == pytest.approx(at(mean), abs=0.06)  # cut at 0
    upright = {(float(n.get("x1", 0)), n.get("x2")) for n in drawn.all("line") if n.get("stroke-dasharray") == "1 3"}
    assert any(x == pytest.approx(at(0.75), abs=0.06) for x, _ in upright)  # the untouched model's mean over seeds
    seeds[1]["erasures"] = {"rows": seeds[1]["erasures"]["rows"][:1], "failed": {"`ssd`": "nothing is left"}}
    text = every.tables(seeds)
    assert f"| `ssd` (2 of 3) | {cells.cell([0.1, 0.5])} |" in text and "- `ssd`: nothing is left" in text


def arm(value: float, **more: Any) -> dict[str, Any]:
    found = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9.0}
    keys = ("forget, rouge_l", "neighbours, rouge_l", "triviaqa, exact", "bbh, exact", "AUC, loss")
    return {"values": {key: found for key in keys}, **more}


def test_the_case_study_shows_each_edit_beside_before_twin_and_random_neurons() -> None:
    figure = import_module("qwen_figure")
    tuned = {"tuned": {"strength": 0.5}, "dial": []}
    arms = {"untouched": arm(0.5), "gold": arm(0.0), "ga": arm(0.4, full=arm(0.2), **tuned),
            "ablate@found": arm(0.45, **tuned), "ablate@random 0": arm(0.5, tuned={"strength": 0.0}, dial=[]),
            "npo@found": {"failed": "it diverged"}}  # fmt: skip
    drawn = Drawn(figure.picture(arms))
    names = ["untouched", "gold", "ga, in full", "ga", "ablate@found", "ablate@random 0"]
    assert [word for word in drawn.words if word in names] == names
    assert len(drawn.circles()) == 1 + 5 and len(drawn.squares()) == 1 + 2 * 5 and len(drawn.polygons(3)) == 1 + 5
    assert len(drawn.polygons(4)) == 1 + 2 * 5
    at = import_module("drawing").scale(0, 1, figure.LEFT, figure.LEFT + figure.WIDE)
    assert drawn.line(at(0.35), at(0.55)) and drawn.line(at(0.0), at(0.1))  # cut at 0
    assert drawn.circles()[1][0] == pytest.approx(at(0.45), abs=0.06)
    del arms["gold"]
    assert "gold" not in Drawn(figure.picture(arms)).words


def test_sizes_are_drawn_as_curves_that_end_where_no_edit_could_be_made() -> None:
    figure, cells = import_module("size_figure"), import_module("cells")

    def point(exact: float, kl: float) -> dict[str, Any]:
        return {"unseen": {"exact_match": exact, "kl_gold": kl}, "retain": {"exact_match": 1.0, "kl_gold": 0.0}}

    def seed(more: float) -> dict[str, Any]:
        kinds = {"ablate": 0.0, "rank_one": 0.1}
        return {f"{kind}@{place} {size}": point(1 - i / 4 - add - more, 6 - 2 * i + add)
                for kind, add in kinds.items() for i, size in enumerate((1, 4, 16)) for place in ("best", "random")
                if place == "best" or size < 16}  # fmt: skip

    seeds = [seed(0.0), seed(0.1)]
    drawn = Drawn(figure.picture(seeds))
    assert len(drawn.circles()) == 1 + 2 * 3 * 3 and len(drawn.polygons(3)) == 1 + 2 * 3 * 2
    up = import_module("drawing").scale(0, 1, figure.HIGH, 0)
    mean, low, high = cells.centre([0.75, 0.65])
    assert sorted(drawn.circles())[-1][0] == figure.WIDE - 8
    assert up(mean) in [pytest.approx(y, abs=0.06) for _, y in drawn.circles()]
    bands = [points for points in drawn.polygons(6)]  # there and back over three sizes
    assert len(bands) == 2 * 3
    first = bands[0]  # ablation, unseen, exact: cut at the axis
    assert first[1][1] == pytest.approx(up(min(high, 1)), abs=0.06) and first[4][1] == pytest.approx(
        up(max(low, 0)), abs=0.06
    )
    assert {"ablate: unseen phrasing, exact", "KL from gold, nats", "retain, exact", "16"} <= set(drawn.words)
    seeds[1]["ablate@best 16"] = {"failed": "too few examples"}
    assert len(Drawn(figure.picture(seeds)).circles()) == 1 + 3 * 3 + 3 * 2
    none = Drawn(figure.picture([{"ablate@best 1": {"failed": "no"}}]))
    assert none.words and len(none.circles()) == 1


def test_what_a_closed_form_writes_and_takes_is_drawn_by_request() -> None:
    figure, cells = import_module("rewrite_figure"), import_module("cells")

    def asked(*values: float) -> dict[str, Any]:
        names = ("edited", "other", "same person", "neighbours", "retain")
        return {name: {"exact": value} for name, value in zip(names, values, strict=False)}

    seeds: list[dict[str, Any]] = [
        {"rank_one@full one": asked(0.7 + more, 0.4, 0.5, 1.0, 1.0), "rank_one@full all": asked(0.3, 0.2),
         "memit@full one": asked(0.6, 0.1, 0.7, 1.0, 1.0), "memit@full all": {"failed": "no"},
         "rank_one@found one": asked(0.9, 0.8, 0.2, 0.9, 0.9), "rank_one@found all": asked(0.8, 0.7)}
        for more in (0.0, 0.1)
    ]  # fmt: skip
    drawn = Drawn(figure.picture(seeds))
    names = [word for word in drawn.words if "@" in word]
    assert names == ["rank_one@full", "rank_one@found", "memit@full"] and drawn.words.count("not made") == 1
    assert len(drawn.circles(hollow=False)) == len(drawn.circles(hollow=True)) == 1 + 5
    assert len(drawn.polygons(3)) == len(drawn.polygons(4)) == len(drawn.squares()) == 1 + 3
    at = import_module("drawing").scale(0, 1, figure.LEFT, figure.LEFT + figure.WIDE)
    mean, low, high = cells.centre([0.7, 0.8])
    assert drawn.line(at(max(low, 0)), at(min(high, 1))) and drawn.circles(hollow=False)[1][0] == pytest.approx(
        at(mean), abs=0.06
    )


def test_controls_are_drawn_beside_every_won_cell_hollow_where_they_are_not_told_apart() -> None:
    figure = import_module("controls_figure")
    cell = {"operator": "ablate", "size": "0.02", "selection": "fisher"}
    told, unsure = [-1.0, -1.1, -0.9], [-1.0, 1.0, 0.3]
    rows = [{"request": "people", **cell, "random": told, "norm": told, "activation": unsure},
            {"request": "a relation", **cell, "random": told, "norm": unsure, "activation": [np.nan] * 3}]  # fmt: skip
    drawn = Drawn(figure.picture(rows, "KL unseen", 3))
    assert [word for word in drawn.words if word in ("people", "a relation")] == ["people", "a relation"]
    assert drawn.words.count("ablate, 2.00% by fisher") == 2
    assert len(drawn.polygons(3)) == 1 + 2 and len(drawn.squares()) == 1 + 2
    assert len(drawn.circles(hollow=True)) == 1 and len(drawn.circles(hollow=False)) == 1
    at = import_module("drawing").scale(-1.3, 0.65, figure.LEFT, figure.LEFT + figure.WIDE)
    triangles = [sum(x for x, _ in points[:2]) / 2 for points in drawn.polygons(3)[1:]]
    assert triangles == pytest.approx([at(-1.0)] * 2, abs=0.06)
    assert drawn.line(at(-1.3), at(0.65))  # an interval that is longer than the axis is cut
    empty = Drawn(figure.picture([], "KL unseen", 3))
    assert len(empty.circles()) == 1


@pytest.mark.parametrize(("reach", "most", "step"), [(0.607, "+0.6", "+0.2"), (1.0, "+1", "+0.5"), (13.0, "+10", "+5")])
def test_the_axis_of_a_regression_has_round_numbers_within_its_reach(reach: float, most: str, step: str) -> None:
    figure = import_module("informs_figure")
    values = {"mean": [0.5 * reach] * 2, "layer 0": [-reach] * 2, "R^2": [0.1] * 2}
    drawn = Drawn(figure.coefficients_drawn(values, 2, "KL"))
    ticks = [word for word in drawn.words if re.fullmatch(r"[+-]?[\d.]+", word)]
    assert ticks[-1] == most and ticks[len(ticks) // 2 : len(ticks) // 2 + 2] == ["0", step]
    assert ticks[0] == most.replace("+", "-")


def rows_of_the_readme() -> list[tuple[str, str, str]]:
    """Script, figure and page of every row of the analyses' list."""
    lines = (FOLDER / "README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    found = [(re.search(r"analyses/(\w+)\.py", row[1]), row[2], row[3]) for row in rows if len(row) == 4]
    return [(script[1], figure, page) for script, figure, page in found if script]


def test_every_analysis_has_a_figure_that_its_page_shows() -> None:
    rows, pages = rows_of_the_readme(), FOLDER.parent / "docs"
    scripts = {path.stem for path in FOLDER.glob("*.py") if "\ndef main(" in path.read_text()}
    assert {script for script, *_ in rows} == scripts
    for script, figures, page in rows:
        names = re.findall(r"\]\(\.\./docs/([\w-]+\.svg)\)", figures)
        shown = re.findall(r"`([\w-]+\.svg)`", figures) or names  # what the script calls it, where the page does not
        assert shown, script
        assert all(f'"{name}"' in (FOLDER / f"{script}.py").read_text() for name in shown), f"{script}: {shown}"
        for name in names:
            own = re.search(r"\]\(\.\./docs/(\w+\.md)", page)
            assert own and f"]({name})" in (pages / own[1]).read_text(), f"{script}: {name}"
            assert (pages / name).stat().st_size < 300_000
    assert {name for _, figures, _ in rows for name in re.findall(r"\[([\w-]+\.svg)\]", figures)} == {
        path.name for path in Path(pages).glob("*.svg")
    } - {"data-flow.svg"}


CELL = re.compile(r"(-?[\d.]+) ± ([\d.]+)")


def shown_rows(page: str) -> list[list[str]]:
    """The rows of a page's tables whose last number is a mean over seeds, in plain words."""
    text = re.sub(r"[`*]", "", (FOLDER.parent / "docs" / f"{page}.md").read_text())
    rows = [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if CELL.search(" ".join(row)) or "refused" in row[1]]


def drawn_at(marks: Sequence[Place], x: float, y: float, off: Place) -> bool:
    """Is there a mark at x and y, as near as a number of two digits says?"""
    return any(abs(a - x) < off[0] and abs(b - y) < off[1] for a, b in marks)


@pytest.mark.parametrize(("page", "edits"), [("operators", 19), ("guards", 12), ("influence", 4)])
def test_the_pages_of_operators_show_what_their_figure_draws(page: str, edits: int) -> None:
    every, drawn = analysis("every_operator"), Drawn((FOLDER.parent / "docs" / "operators.svg").read_text())
    scale, marks, rows = import_module("drawing").scale, drawn.marks(), shown_rows(page)
    heights = {"".join(n.itertext()): float(n.get("y", 0)) - 4 for n in drawn.all("text") if n.get("x")}
    assert len(rows) == edits
    for name, *cells in rows:
        for i, (aside, cell) in enumerate(zip((-every.ASIDE, every.ASIDE, 0), cells[:3], strict=True)):
            at = scale(0, 1, left := every.LEFT + (i // 2) * (every.WIDE + every.GAP), left + every.WIDE)
            mean, half = (float(part) for part in CELL.fullmatch(cell).groups())  # type: ignore[union-attr]
            y = heights[name] + aside
            assert drawn_at(marks, at(mean), y, (0.006 * every.WIDE, 0.2)), (name, cell)
            ends = [
                (float(n.get("x1", 0)), float(n.get("y1", 0)))
                for n in drawn.all("line")
                if n.get("stroke-width") == "1.4"
            ]
            low = max(mean - half, 0)
            assert half < 0.01 or drawn_at(ends, at(low), y, (0.011 * every.WIDE, 0.2)), (name, cell)


def test_the_page_of_requests_shows_what_its_figure_draws() -> None:
    undone, drawn = analysis("undone_alone"), Drawn((FOLDER.parent / "docs" / "ledger.svg").read_text())
    scale, marks = import_module("drawing").scale, drawn.marks()
    rows = [row for row in shown_rows("ledger") if not row[1].startswith("less ")]
    edits = list(dict.fromkeys(edit for edit, *_ in rows))
    assert edits == ["ablate", "rank_one", "npo"] and len(rows) == 3 * 6
    up = scale(0, 1, undone.ABOVE + undone.HIGH, undone.ABOVE)
    ends = [(float(n.get("x1", 0)), float(n.get("y1", 0))) for n in drawn.all("line") if n.get("stroke-width") == "1.4"]
    for i, (edit, state, *cells) in enumerate(rows):
        left = undone.LEFT + edits.index(edit) * (undone.WIDE + undone.GAP)
        at = scale(0, 5, left + 18, left + undone.WIDE - 18)
        for j, cell in enumerate(cells if "refused" not in state else ()):
            mean, half = (float(part) for part in CELL.fullmatch(cell).groups())  # type: ignore[union-attr]
            x = at(i % 6) + undone.ASIDE * (j - 1.5)
            assert drawn_at(marks, x, up(mean), (0.2, 0.006 * undone.HIGH)), (edit, state, cell)
            low = max(mean - half, 0)
            assert half < 0.01 or drawn_at(ends, x, up(low), (0.2, 0.011 * undone.HIGH)), (edit, state, cell)
