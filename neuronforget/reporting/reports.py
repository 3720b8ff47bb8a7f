"""report(): what was asked and what came of it, from the verdict to how it is had again, as one HTML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from os.path import relpath
from pathlib import Path
from urllib.parse import quote

from neuronforget.arguments import checks_kinds
from neuronforget.auditing import Audit
from neuronforget.errors import InputError, warn
from neuronforget.findings import audited, describe
from neuronforget.findings.closeups import Closeups
from neuronforget.findings.readings import drawn_in
from neuronforget.neurons import Neurons
from neuronforget.reporting.maps import map_pictures
from neuronforget.reporting.pages import Section, page, reproduce
from neuronforget.reporting.pictures import (
    closeup_pictures,
    comparison_pictures,
    measured,
    moved_pictures,
    shift_picture,
)
from neuronforget.reporting.residues import residue_pictures
from neuronforget.reporting.tables import certificates_table, controls_table, made_table, results_table
from neuronforget.results import BY_EDIT, MATCHED, Results
from neuronforget.scores import Scores

SHOWN = 300  # characters of the example that says what is to go
NAMES = (
    " In a name, what follows the @ says where the edit works: the selected neurons, random or matched ones, one layer."
)
#: Kind of an edit -> its words for one edit, and for several.
SCOPES = {
    "neurons": ("on chosen neurons", "on chosen neurons"), "full": ("of the whole model", "of the whole model"),
    "guard": ("guard", "guards"), "control": ("control", "controls"),
}  # fmt: skip


@checks_kinds
def report(
    results: Results,
    path: str | Path,
    *,
    scores: Scores | None = None,
    neurons: Neurons | None = None,
    truth: Neurons | None = None,
    controls: Sequence[Neurons] = (),
    shifts: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    layers: Sequence[int] | None = None,
    closeups: Closeups | None = None,
    findings: Iterable[str] | None = None,
    audits: Mapping[str, Audit] | None = None,
    audit_pages: Mapping[str, Path] | None = None,
    title: str = "What was forgotten, and what was damaged",
) -> Path:
    """Write the report; sections whose inputs are missing are left out.

    Raises InputError if `path` is unwritable, and for scores or neurons of another model than the results'.
    `findings` are its verdict in sentences (default: what `findings.describe` reads off the rest), `audit_pages` are
    files, of audits that have a page of their own: the report leads to them.
    """
    _check_alike(results, scores, neurons)
    audits, info, metrics = audits or {}, results.info, measured(results)
    links = {name: _address(page, path) for name, page in (audit_pages or {}).items()}
    if findings is None:
        findings = [*describe(results, neurons, truth, controls, audits)]
    layers = layers or (scores.layers if scores else ())
    where = map_pictures(scores, neurons, truth, controls) if scores is not None else []
    where += closeup_pictures(closeups, neurons) if closeups is not None else []
    moved = [shift_picture(shifts, layers)] if shifts else []
    moved += moved_pictures(closeups.shifts, layers) if closeups is not None else []
    made = made_table(info.get("edits", {}))
    sections = [
        Section("What was asked", pairs=_asked(results, scores, neurons, closeups)),
        _verdict(findings, audits, links),
        _numbers(results),
        Section("Forgetting against damage", pictures=comparison_pictures(results)),
        Section("Where the knowledge lies", pictures=where),
        Section("What the edits moved", pictures=moved),
        Section("What is left", "Curves from the audits, beside the untouched model and the gold twin (if given).",
                pictures=residue_pictures(audits)),
        _cards(closeups),
        *_checked(results, metrics),
        reproduce({key: value for key, value in info.items() if key not in BY_EDIT}, [made] if made else ()),
    ]  # fmt: skip
    return page(path, title, sections, nan=sum(row["nan"] for row in results.rows if row["point"] == "full"))


def _check_alike(results: Results, scores: Scores | None, neurons: Neurons | None) -> None:
    """A model is known by its layers and their width; another name may be another path to the same one."""
    sizes = {"the results": tuple(results.info.get("shape", ()))}
    sizes |= {"the scores": tuple(scores.values.shape)} if scores is not None else {}
    sizes |= {"the neurons": (len(neurons.layers), neurons.width)} if neurons is not None else {}
    known = [(what, size) for what, size in sizes.items() if size]
    for (one, size), (other, found) in pairwise(known):
        if size != found:
            raise InputError(f"{one} are of a model of {size[0]} layers of {size[1]} neurons, {other} of {found[0]} of "
                             f"{found[1]}: give those of one model")  # fmt: skip
    of = (scores.info.get("forget") or {}).get("model") if scores is not None else None
    if None not in (of, mine := results.info.get("model")) and of != mine:
        warn(f"the results are of the model {mine!r}, the scores of {of!r}: is it the same one?")


def _address(file: Path, page: str | Path) -> str:
    """Where a file lies, seen from a page."""
    return quote(Path(relpath(file.absolute(), Path(page).absolute().parent)).as_posix(), safe="/@")


def _verdict(findings: Iterable[str], audits: Mapping[str, Audit], links: Mapping[str, str]) -> Section:
    """The findings and the audits; what a finding says of an audit stands in the audit's own lines."""
    told = [audited(name, audit) for name, audit in audits.items()]
    left = [sentence for sentence in findings if sentence not in told]
    return Section("Verdict", findings=left, audits=[(name, links.get(name, ""), a) for name, a in audits.items()])


def _numbers(results: Results) -> Section:
    tables = [results_table(results, point) for point in (*MATCHED, "full")]
    return Section(
        "Numbers", "Values with their 95% intervals: bootstrap over subjects, exact where all are 0 or all 1. Compare "
        "methods at matched damage: at full strength, one method may only have been pushed harder than another."
        + (NAMES if any("@" in row["edit"] for row in results.rows) else ""),
        tables=[table for table in tables if table.rows],
    )  # fmt: skip


def _cards(closeups: Closeups | None) -> Section:
    return Section(
        "Neuron cards", "The selected neurons with the highest scores. A card lists the tokens that the neuron "
        "promotes and suppresses (what it writes, read by the unembedding), and where in the forget examples it is "
        "most active. Its table has a row for each edit. The change of its write weights is the length of their change "
        "as a share of their length before: 0% leaves them as they were, ablation to zero is 100%. The change of its "
        "activation is the root mean square over the forget tokens.",
        cards=closeups.cards if closeups else (),
    )  # fmt: skip


def _checked(results: Results, metrics: set[str]) -> list[Section]:
    """What speaks for the edits beside their numbers: controls and certificates."""
    metric = drawn_in(results) or next((m for m in ("exact_match", "probability") if m in metrics), None)
    matched = any(row["point"] == "matched" for row in results.rows)
    beside = controls_table(results, metric, "matched" if matched else "full") if metric else None
    certified = certificates_table(results.info.get("certificates", {}))
    return [
        Section("Controls", "The same methods on other neurons, "
                + ("at matched damage" if matched else "at full strength, as matched damage was not measured: one may "
                   "only have been pushed harder than the other")
                + ". If a control forgets as much as the edit, the choice of neurons explains nothing.",
                tables=[beside] if beside else ()),
        Section("Certificate", "Did anything outside an edit move while it was on? Did taking it off restore every "
                "bit? Every value of the model was compared.", tables=[certified] if certified else ()),
    ]  # fmt: skip


def _asked(
    results: Results, scores: Scores | None, neurons: Neurons | None, closeups: Closeups | None
) -> list[tuple[str, str]]:
    """The request, in words: from which model what was to go, what to stay, and by which edits."""
    info, start = results.info, {r["corpus"]: r["n"] for r in results.rows if r["edit"] == "untouched"}
    names = {role: corpus["name"] for role, corpus in info.get("corpora", {}).items()}
    text = " ".join("".join(closeups.texts[0].tokens).split()) if closeups and closeups.texts else ""
    example = f', for example "{text[:SHOWN]}{" ..." if len(text) > SHOWN else ""}"' if text else ""
    scopes = {row["edit"]: row["scope"] for row in results.rows}
    kinds = Counter(scopes.values())
    target = [
        ("Forget", f"{names.get('forget', '')} ({start.get('forget', 0)} examples){example}"),
        ("Keep", f"{names.get('retain', '')} ({start.get('retain', 0)} examples measured)"),
        ("Target", "the gold twin, which never saw the forget corpus" if "gold" in scopes else "unknown: no gold twin "
                   "was given, which would show what a model that never knew answers"),
    ]  # fmt: skip
    found = [
        ("Model", info.get("model", "")),
        *(target if start else ()),
        ("Edits", ", ".join(f"{kinds[s]} {words[kinds[s] > 1]}" for s, words in SCOPES.items() if kinds[s])),
    ]
    if neurons is not None:
        share = len(neurons) / (len(neurons.layers) * neurons.width)
        by = scores.name if scores is not None else "a score"
        found.append(("Neurons", f"{len(neurons):,} selected by {by}, {share:.1%} of all"))
    return [(name, str(words).strip()) for name, words in found if words]
