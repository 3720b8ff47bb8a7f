"""Colours that have to be told apart can be, by the colour-blind and in print, and never speak alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import full_size
import numpy as np
import pytest
from plotly.colors import sample_colorscale, unlabel_rgb

import neuronforget as nf
from neuronforget import figures
from neuronforget.colours import GREY, OKABE_ITO
from neuronforget.figures.auditing import SUBJECTS
from neuronforget.figures.style import by_depth
from neuronforget.reporting.residues import residue_pictures

#: What is left of linear RGB without one kind of cone (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHT = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
#: From linear RGB to CIE XYZ (sRGB primaries, D65), over the white point.
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = XYZ.sum(1)
APART = 15  # CIE 1976 difference; 2.3 can just be seen side by side


def lab(colour: str, sight: str = "all cones") -> np.ndarray:
    """CIE L*a*b* of a colour as it is seen."""
    values = [int(colour[i : i + 2], 16) for i in (1, 3, 5)] if colour.startswith("#") else unlabel_rgb(colour)
    srgb = np.array(values) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = XYZ @ np.clip(np.array(SIGHT[sight]) @ linear, 0, 1) / WHITE
    root = np.where(seen > 216 / 24389, np.cbrt(seen), (24389 / 27 * seen + 16) / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def test_the_conversion_gives_the_published_values() -> None:
    np.testing.assert_allclose(lab("#ffffff"), [100, 0, 0], atol=0.02)
    np.testing.assert_allclose(lab("#ff0000"), [53.24, 80.09, 67.20], atol=0.05)
    assert np.linalg.norm(lab("#ff0000", "deuteranopia") - lab("#a39000", "deuteranopia")) < 15  # red and olive are one


@pytest.mark.parametrize("sight", SIGHT)
def test_the_colours_of_edits_stay_apart(sight: str) -> None:
    for one, other in combinations((*OKABE_ITO, GREY), 2):
        assert np.linalg.norm(lab(one, sight) - lab(other, sight)) > APART, (one, other)


@pytest.mark.parametrize("sight", SIGHT)
def test_both_ends_of_a_scale_of_signs_stay_apart(sight: str) -> None:
    for share in (0.0, 0.1, 0.2):
        ends = sample_colorscale("RdBu_r", [share, 1 - share])
        assert np.linalg.norm(lab(ends[0], sight) - lab(ends[1], sight)) > APART


def test_deeper_layers_are_lighter_in_grey_too_and_can_be_seen_on_white() -> None:
    light = [lab(colour)[0] for colour in by_depth(32)]
    assert np.diff(light).min() > 0 and light[-1] < 80


def test_no_line_is_told_from_another_by_its_colour_alone() -> None:
    """In a frontier, and in an audit's curves, every pair differs in its marker or its dash."""
    drawn = [figures.frontier(full_size.results())]
    drawn += [p.figure for p in residue_pictures({name: full_size.audit() for name in "abcde"})]
    for figure in drawn:
        looks = [(t.marker.symbol, t.line.dash) for t in figure.data]
        assert len(looks) > 5 and len(set(looks)) == len(looks)
    assert len({(marker, dash) for _, marker, dash in SUBJECTS.values()}) == len(SUBJECTS)


def test_in_grey_the_bars_differ_in_lightness_or_in_their_hatching() -> None:
    some = nf.select.per_layer(full_size.scores(), 0.01)
    bars = figures.layer_share(some, [some.random_like(0)], some).data
    looks = [(lab(bar.marker.color)[0], bar.marker.pattern.shape) for bar in bars]
    assert len(bars) == 4 and all(abs(a[0] - b[0]) > 10 or a[1] != b[1] for a, b in combinations(looks, 2))


@pytest.mark.parametrize(("metric", "words"), [("probability", "probability of the answer"), ("mine", "mine")])
def test_relearning_is_drawn_in_the_measure_of_the_audit(metric: str, words: str) -> None:
    audit = full_size.audit()
    audit = replace(audit, damage={**audit.damage, "metric": metric})
    first = next(p for p in residue_pictures({"npo": audit}) if p.title.startswith("Relearning"))
    assert first.figure.layout.yaxis.title.text == words


def test_audits_of_different_measures_are_not_drawn_on_one_axis() -> None:
    audit, named = full_size.audit(), ("exact_match", "probability", "exact_match")
    audits = {f"edit {i}": replace(audit, damage={**audit.damage, "metric": name}) for i, name in enumerate(named)}
    made = residue_pictures(audits)
    drawn = {
        p.figure.layout.yaxis.title.text: {t.name for t in p.figure.data if t.name in audits}
        for p in made
        if p.title.startswith("Relearning: the facts")
    }
    assert drawn == {"accuracy (exact match)": {"edit 0", "edit 2"}, "probability of the answer": {"edit 1"}}
    lens = next(p for p in made if p.title.startswith("Residue: the answer read off"))
    assert audits.keys() < {t.name for t in lens.figure.data}, "this probe has one measure whatever the audit's is"
    assert len({p.name for p in made}) == len(made), "each has an anchor of its own"
