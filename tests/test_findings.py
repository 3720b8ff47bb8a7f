"""What is said in words of a comparison's results: of numbers that the test makes up, and so knows the words for."""

from __future__ import annotations

import pytest

from neuronforget.findings import describe
from neuronforget.results import Results


def fabricated(values: dict[str, tuple[str, float, float]]) -> Results:
    """Results in which each edit leaves the given (scope, forget, retain) accuracies, at every point."""
    rows = []
    for name, (scope, forget, retain) in values.items():
        for point in ("full",) if scope == "reference" else ("full", "matched"):
            for corpus, value in (("forget", forget), ("retain", retain)):
                row = {
                    "edit": name,
                    "scope": scope,
                    "strength": 1.0,
                    "point": point,
                    "corpus": corpus,
                    "n": 100,
                    "nan": 0,
                }
                rows.append(row | {"metric": "exact_match", "value": value, "low": value - 0.05, "high": value + 0.05})
    return Results(tuple(rows), (), {"seed": 0, "damage_budget": 0.05})


START = {"untouched": ("reference", 1.0, 1.0), "gold": ("reference", 0.1, 1.0)}


def test_findings_say_when_the_location_explains_nothing() -> None:
    values = START | {"ablate": ("neurons", 0.5, 1.0), "ablate@random 0": ("control", 0.4, 1.0)}
    text = " ".join(describe(fabricated(values)))
    assert "its location explains nothing" in text and "is not within 5 points of the gold twin" in text


def test_findings_say_when_only_the_selection_forgets() -> None:
    values = START | {"ablate": ("neurons", 0.12, 1.0), "ablate@random 0": ("control", 1.0, 1.0)}
    text = " ".join(describe(fabricated(values)))
    assert "random neurons do nothing" in text and "is within 5 points of the gold twin" in text


def test_findings_say_when_neither_selection_nor_control_does_anything() -> None:
    values = START | {"ablate": ("neurons", 1.0, 1.0), "ablate@random 0": ("control", 1.0, 1.0)}
    text = " ".join(describe(fabricated(values)))
    assert "does not depend on the neurons that the score found" in text


@pytest.mark.parametrize(
    ("here", "there", "verdict"),
    [
        (0.1, 0.5, "the selected ones forget more than this random draw"),
        (0.5, 0.1, "this random draw forgets more"),
        (0.3, 0.35, "no clear difference"),
    ],
)
def test_findings_call_only_separate_intervals_a_difference(here: float, there: float, verdict: str) -> None:
    values = START | {"npo@neurons": ("neurons", here, 1.0), "npo@random 0": ("control", there, 1.0)}
    assert verdict in " ".join(describe(fabricated(values)))


def test_findings_read_probabilities_where_no_answer_was_ever_written_exactly() -> None:
    rows = fabricated({"untouched": ("reference", 0.0, 0.0), "npo": ("full", 0.0, 0.0)}).rows
    more = [row | {"metric": "probability", "value": 0.3 if row["edit"] == "untouched" else 0.05} for row in rows]
    text = " ".join(describe(Results((*rows, *more), (), {"seed": 0, "damage_budget": 0.05})))
    assert (
        "probabilities of the answer" in text
        and "Before any edit they are 30.0% on forget" in text
        and "npo 5.0%" in text
    )


def test_findings_name_what_destroyed_retained_knowledge() -> None:
    text = " ".join(describe(fabricated(START | {"ga": ("full", 0.0, 0.2), "npo": ("full", 0.0, 0.95)})))
    assert "Edits that destroy retained knowledge at full strength: ga (80 points)." in text


def test_findings_do_not_call_destroyed_what_was_hardly_known() -> None:
    values = {"untouched": ("reference", 0.3, 0.013), "ga": ("full", 0.0, 0.002), "npo": ("full", 0.0, 0.013)}
    text = " ".join(describe(fabricated(values)))
    assert "knows hardly anything of retain (1.3%)" in text and "destroy retained knowledge" not in text


def test_findings_say_nothing_of_a_broken_model_but_that_it_is_broken() -> None:
    values = START | {
        "ablate": ("neurons", 0.12, 1.0),
        "ablate@random 0": ("control", 0.9, 1.0),
        "ga": ("full", 0.5, 0.9),
    }
    rows = [
        row
        | (
            {"value": float("nan"), "low": float("nan"), "high": float("nan"), "nan": 7}
            if row["edit"] in broken
            else {}
        )
        for broken in [{"ablate@random 0", "ga"}]
        for row in fabricated(values).rows
    ]
    text = list(describe(Results(tuple(rows), (), {"seed": 0, "damage_budget": 0.05})))
    assert sum("breaks the model: NaN on up to 7 examples" in line for line in text) == 2
    rest = " ".join(line for line in text if "breaks the model" not in line)
    assert "nan" not in rest and "random 0" not in rest and "ga" not in rest.split()
    assert "Ablating the selected neurons leaves forget at 12.0%" in rest


def test_findings_call_nothing_near_where_nothing_was_known() -> None:
    values = {"untouched": ("reference", 0.3, 1.0), "gold": ("reference", 0.26, 1.0), "ablate": ("neurons", 0.3, 1.0)}
    assert "The untouched model hardly exceeds it: too little was known" in " ".join(describe(fabricated(values)))
    beside = values | {"ablate": ("neurons", 0.29, 1.0), "ablate@random 0": ("control", 0.295, 1.0)}
    text = " ".join(describe(fabricated(beside)))
    assert "29.5% to 29.5%: too little was known to tell what this means." in text
    assert "needs no localisation" not in text


def test_findings_pair_examples_where_they_are_kept() -> None:
    """Two edits whose intervals overlap widely, but one is worse on every example."""
    results = fabricated(START | {"npo@neurons": ("neurons", 0.50, 1.0), "npo@random 0": ("control", 0.52, 1.0)})
    assert "no clear difference" in " ".join(describe(results))
    examples = [
        {"edit": name, "point": "matched", "corpus": "forget", "metric": "exact_match", "example": i, "unit": i}
        | {"value": i / 100 + shift}
        for name, shift in (("npo@neurons", 0.0), ("npo@random 0", 0.02))
        for i in range(100)
    ]
    assert "the selected ones forget more than this random draw" in " ".join(
        describe(Results(results.rows, tuple(examples), results.info))
    )
    few = [row | {"n": 3} for row in results.rows]
    assert "too few examples to tell" in " ".join(describe(Results(tuple(few), tuple(examples), results.info)))


def test_a_part_of_a_comparison_is_corrected_for_all_pairs_that_the_best_were_looked_for_in() -> None:
    left = {"npo": ("full", 0.55, 1.0), **{f"ga {i}": ("full", 0.9, 1.0) for i in range(2)}}
    left |= {"npo@neurons": ("neurons", 0.5, 1.0), **{f"ga@neurons {i}": ("neurons", 0.9, 1.0) for i in range(3)}}
    results = fabricated(START | left)
    examples = tuple(
        {"edit": name, "point": "matched", "corpus": "forget", "metric": "exact_match", "example": i, "unit": i}
        | {"value": float(i < answered)}
        for name, answered in (("npo@neurons", 50), ("npo", 55))
        for i in range(100)
    )
    whole = Results(results.rows, examples, results.info)
    part = whole.only(edits=["npo", "npo@neurons", "ga 0"]).only(edits=["npo", "npo@neurons"])
    for found in (whole, part):
        assert "no clear difference (at 95% over all 12 such pairs)" in " ".join(describe(found))
    alone = Results(part.rows, examples, results.info)  # where these two were all that was compared
    assert "the neuron-level edit forgets more (at 95%)" in " ".join(describe(alone))
