"""The documentation keeps its word: links lead somewhere, every page is named in the README, every code block runs."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import re
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from pydoc import locate
from types import FunctionType, ModuleType
from typing import Any

import pytest

import neuronforget as nf
from neuronforget import cli
from neuronforget.commands.suites import SUITES
from neuronforget.scores.scores import needs
from neuronforget.testbed import Shape

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *DOCS, *(ROOT / "analyses").glob("*.md"), *(ROOT / "examples").glob("*.md")])
SHAPE = Shape(layers=6, d_model=16, d_mlp=32, heads=2, steps=4, graft_steps=4, planted=4, batch=8)
#: Page -> what its code says and the test has otherwise.
INSTEAD = {
    "guards.md": {
        "lm.model.generate(...)": "from neuronforget.evaluation.generation import generate; generate(lm, forget)"
    },
    "influence.md": {
        "head(200)": "head(9)",
        'lm, forget, retain, "adapter"': 'lm, forget, retain.head(9), "adapter", steps=100, tolerance=0.99',
        "damping=0.1": "damping=1.0, tolerance=0.9",
        "shards=4": "shards=4, train=quick",
    },
    "losses.md": {
        "finetune(lm, forget, retain": "finetune(lm, forget, retain, steps=3",
        "finetune(lm, forget, loss": "finetune(lm, forget, steps=3, loss",
    },
    "operators.md": {"layers=[3, 4, 5],": "layers=[3, 4, 5], cut=0.9,"},
    "training.md": {
        "finetune(lm, forget, retain": "finetune(lm, forget, retain, steps=3",
        "2: 1e-3": "2: 1e-3, 3: 0.0, 4: 0.0, 5: 0.0",
    },
    "suites.md": {'path="FOLDER"': 'path="FOLDER", n=2, protocol=short, progress=False'},
    "howto/find.md": {
        "q=0.05": "q=0.05, permutations=50",
        "lm, forget, score": "lm, forget.head(2), score",
        "edits, forget, retain)": "edits, forget, retain, strengths=(), damage=None)",
    },
    "howto/suite.md": {'path="FOLDER"': 'path="FOLDER", n=2, protocol=short, progress=False'},
    "howto/large.md": {
        "n=100_000": "n=10",
        "dtype=torch.bfloat16": "dtype=torch.float32",
        "accumulate=8": "accumulate=2, steps=2",
        "checkpointing=True": "checkpointing=True, steps=2",
        "lora=8": "lora=2, steps=2",
    },
    "howto/erase.md": {"steps=20": "steps=2", "budget=0.05": "budget=5.0"},
    "howto/compare.md": {"steps=20": "steps=2", "divergence=0.05": "strengths=()"},
    "howto/audit.md": {"gold=twin)": 'gold=twin, probes=["choice", "lens"])'},
}


def name_of(page: Path) -> str:
    """The page's path in the documentation, or in the repository."""
    home = ROOT / "docs" if page.is_relative_to(ROOT / "docs") else ROOT
    return page.relative_to(home).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the forge makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in (link for link in links if not re.match(r"https?:|mailto:", link)):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_readme_leads_to_every_page() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        links = re.findall(r"\]\(([^)\s#]+\.md)", page.read_text(encoding="utf-8"))
        found = {(page.parent / link).resolve() for link in links if "://" not in link} - reached
        reached |= found
        waiting += found
    assert not {name_of(page) for page in DOCS if page.resolve() not in reached}


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    """What the pages' code takes as there: a small model of six layers, its twin, two corpora, neurons, an edit."""
    bed = nf.testbed.people("ordinary", people=8, forget_people=2, shape=SHAPE, cache=False, progress=False)
    lm, forget, retain = bed.lm, bed.forget, bed.retain
    neurons = nf.select.per_layer(nf.attribute(lm, forget, retain, progress=False), 0.1)
    edit = nf.erase.ablate(lm, neurons)
    people = sorted({str(example.subject) for example in forget})
    a, b = (nf.Corpus(tuple(e for e in forget if e.subject == name), name) for name in people)
    results = nf.evaluate(lm, {"a": edit}, forget, retain, strengths=(), damage=None, progress=False)
    return {
        "nf": nf, "partial": partial,
        "quick": partial(nf.erase.finetune, loss=nf.losses.learn, steps=2, progress=False),
        "lm": lm, "twin": bed.gold, "retain_only": bed.gold, "start": lm,
        "forget": forget, "retain": retain,
        "corpus": nf.Corpus(forget.examples + retain.examples, "all"), "neurons": neurons, "edit": edit, "a": a, "b": b,
        "results": results,
    }  # fmt: skip


def test_the_page_of_scores_has_every_score_and_its_default_contrast() -> None:
    lines = (ROOT / "docs/scores.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    shown = {row[0].strip("`"): row for row in rows if len(row) == 5 and row[0].startswith("`")}
    marks = {"Scores", "TopTokens", "PeakCounts", "runs_model", "reads_examples"}
    assert set(shown) == set(nf.scores.__all__) - marks
    for name, row in shown.items():
        settings = inspect.signature(getattr(nf.scores, name)).parameters
        if "contrast" in settings and needs(getattr(nf.scores, name)) != "model":
            assert row[2] == settings["contrast"].default, name
        assert ("contrast" in settings) or row[2] not in ("difference", "ratio"), name


#: Pages whose code compares, audits or trains at length.
LONG = ("audit.md", "compare.md", "influence.md")
CODED = [
    pytest.param(page, marks=[pytest.mark.slow] if page.name in LONG else [])
    for page in DOCS
    if "```python" in page.read_text(encoding="utf-8")
]


@pytest.mark.usefixtures("brief_relearning")
@pytest.mark.parametrize("page", CODED, ids=name_of)
def test_every_code_block_runs(
    page: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names, digest = dict(given), given["lm"].digest()
    if page.name == "influence.md":
        nf.erase.learn_adapter(names["lm"], names["forget"], steps=2, progress=False).save("adapter")
        names["start"] = nf.LM(nf.testbed.training.shared_twin_copy(given["lm"].model), given["lm"].tokenizer)
    if page.name in ("suites.md", "suite.md"):
        names |= {"short": tofu_rows(tmp_path / "FOLDER")}
    if page.parent.name == "howto":
        given["lm"].save(tmp_path / "CHECKPOINT")
        names["retain"] = given["retain"].sample(9, 0)  # of several people
        for corpus in ("forget", "retain"):
            lines = [json.dumps(asdict(example)) for example in names[corpus]]
            (tmp_path / f"{corpus}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    if page.name == "compare.md":
        brief: dict[str, Any] = {"steps": 1, "measured": 4, "controls": 0, "audited": (), "progress": False}
        nf.compare(given["lm"], given["forget"], names["retain"], **brief).save(tmp_path / "comparison")
    text = page.read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        for said, has in INSTEAD.get(name_of(page), {}).items():
            assert said in text, f"{page.name} no longer says {said}"
            code = code.replace(said, has)
        exec(compile(code, page.name, "exec"), names)
    if page.name != "ledger.md":  # whose last state is on the model
        assert given["lm"].digest() == digest
    else:
        names["ledger"].undo_all(given["lm"])


def tofu_rows(folder: Path) -> Any:
    """Two rows of each of TOFU's sets, and how to ask them in few tokens."""
    from neuronforget.evaluation.generation import Decoding
    from neuronforget.suites.tofu_questions import Protocol

    folder.mkdir()
    for name in ("retain", "forget10", "real_authors", "world_facts"):
        rows = [
            {"question": f"Who {i}?", "answer": "Oslo", "paraphrased_answer": "in Oslo", "paraphrased_question": "Who?",
             "perturbed_answer": ["Velm", "Bergen"], "option1": "Oslo", "option2": "Velm"}
            for i in range(2)
        ]  # fmt: skip
        (folder / f"{name}_perturbed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Protocol(decoding=Decoding(2, ()))


def templates() -> list[re.Pattern[str]]:
    """Every message that the package raises as an InputError, with its f-string's parts open."""

    def pattern(node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return re.escape(str(node.value))
        if isinstance(node, ast.JoinedStr):
            return "".join(map(pattern, node.values))
        return f"{pattern(node.left)}{pattern(node.right)}" if isinstance(node, ast.BinOp) else ".+"

    found = []
    for path in (ROOT / "neuronforget").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") in ("InputError", "not_finite")
                and node.args
            ):
                found.append(pattern(node.args[0]))
    # What is open on both sides, or nearly so, would hold any message.
    return [re.compile(text) for text in found if len(text.replace(".+", "")) > 15]


def test_every_quoted_error_is_raised_by_the_source() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    quoted, known = re.findall(r"```text\n(.+)\n```\n\n- \*\*Cause\.\*\* (?:.+\n)+?- \*\*Fix\.\*\* ", text), templates()
    assert len(quoted) == text.count("```text") >= 15
    for message in quoted:
        bare = re.sub(r"^\S+, line \d+: ", "", message)  # an error in a row has its place put before it
        assert any(one.fullmatch(message) or one.fullmatch(bare) for one in known), message


def looked_up(place: str, results: dict[str, Any]) -> float:
    """The figure at `table[column=value; column=value].column` of a results file."""
    table, wanted, column = re.fullmatch(r"(\w+)\[(.+)\]\.(.+)", place).groups()  # type: ignore[union-attr]
    conditions = [part.split("=", 1) for part in wanted.split("; ")]
    (row,) = [row for row in results[table] if all(str(row[key]) == value for key, value in conditions)]
    return float(row[column])


def test_every_figure_of_the_performance_page_stands_in_a_results_file() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    results, figures = {}, 0
    for line in text.splitlines():
        if named := re.search(r"\]\(\.\./(.+\.json)\)", line):
            path = ROOT / named[1]
            stem = re.sub(r"^\d{4}-\d\d-\d\d", "", path.name)
            last = max(found.name for found in path.parent.glob(f"????-??-??{stem}"))
            assert path.name == last, f"{named[1]} is no longer the last of its kind: {last}"
            results = json.loads(path.read_text(encoding="utf-8"))
        elif cells := re.fullmatch(r"\| .+ \| ([\d.]+) \| `(.+)` \|", line):
            figures += 1
            digits = len(cells[1].partition(".")[2])
            assert f"{looked_up(cells[2], results):.{digits}f}" == cells[1], line
        else:  # no figure stands where none is looked up
            assert not re.search(r"\d\.\d", re.sub(r"`.*?`", "", line)), line
    assert figures > 30


@cache
def options_of(*command: str) -> set[str]:
    """The options of a command, as its own help has them."""
    caught = io.StringIO()
    with contextlib.redirect_stdout(caught), contextlib.suppress(SystemExit):
        cli._run([*command, "--help"])
    columns = re.findall(r"^\W (-\S.*?)(?:  |$)", caught.getvalue(), re.M)
    return set(re.findall(r"--[a-z][\w-]*", " ".join(columns)))


@cache
def options_of_script(path: Path) -> set[str]:
    """The options of a script: argparse's, or the parameters of a `main` that tyro reads."""
    source = path.read_text(encoding="utf-8")
    # what the analyses have in common
    for home, parsers in (("regime_map.py", "mapping"), ("running.py", "asking|mapping|running")):
        if re.search(rf"\b({parsers})\(", source) and path.name != home:
            source += (path.parent / home).read_text(encoding="utf-8")
    by_tyro = re.findall(r"(\w+): ", "".join(re.findall(r"^def main\((.*?)\) ->", source, re.M | re.S)))
    return {*re.findall(r"add_argument\(\"(--[\w-]+)", source), *(f"--{name.replace('_', '-')}" for name in by_tyro)}


def shown_commands(page: Path) -> list[str]:
    """The commands of a page's shell blocks, each on one line and without its comment."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in lines) if line]


NAMED = {command.__name__ for command in cli.COMMANDS}
GUIDES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which tells of what was, too


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_option_shown_is_one_of_its_command(page: Path) -> None:
    for line in shown_commands(page):
        words = line.split()
        program = words[0].rpartition("/")[2]
        asked = {word.partition("=")[0] for word in words if word.startswith("--")}
        if program == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M), line
        elif program in ("python", "torchrun") and "neuronforget" not in words:
            (path,) = (word for word in words if word.endswith(".py"))
            asked = {word.partition("=")[0] for word in words[words.index(path) :] if word.startswith("--")}
            assert asked <= options_of_script(ROOT / path), line
        elif program in ("neuronforget", "torchrun"):
            name, *rest = words[words.index("neuronforget") + 1 :]
            suite = rest[0].removeprefix("--") if name == "evaluate" else ""
            asked = {word.partition("=")[0] for word in rest if word.startswith("--")} - {"--help"}
            if suite in SUITES:
                assert asked - {"--self-test"} <= options_of(name, suite), line
            else:
                assert name in NAMED and asked <= options_of(name), line
        else:
            assert program in ("git", "cd", "pip"), line


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_option_named_in_the_text_exists(page: Path) -> None:
    known = {"--help", "--self-test"}.union(
        *map(options_of, NAMED), *(options_of("evaluate", suite) for suite in SUITES)
    )
    for folder in ("analyses", "benchmarks", "examples", "kernels"):
        known = known.union(*map(options_of_script, (ROOT / folder).glob("*.py")))
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    named = re.findall(r"(?<![\w-])--[a-z][\w-]*", " ".join(re.findall(r"`([^`]*)`", prose)))
    assert set(named) <= known


def test_every_page_is_in_a_toctree() -> None:
    listed = set()
    for page in DOCS:
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / f"{name}.md").resolve() for name in names}
    assert {page.resolve() for page in DOCS} - listed == {(ROOT / "docs" / "index.md").resolve()}
    assert all(page.is_file() for page in listed)


def test_every_exported_name_is_in_the_reference() -> None:
    shown = set()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        names = set(re.findall(r"^\.\. auto\w+:: (?:neuronforget\.)?(\S+)$", text, re.M))
        assert all(locate(f"neuronforget.{name}") is not None for name in names), page.name
        shown |= names
        shown |= {f"{page.stem}.{name}" for name in re.findall(r"^\.\. py:data:: (\S+)$", text, re.M)}
    assert set(nf.__all__) <= shown
    for module in (value for value in vars(nf).values() if isinstance(value, ModuleType) and hasattr(value, "__all__")):
        home = module.__name__.removeprefix("neuronforget.")
        if home in nf.__all__:  # `automodule` shows functions and classes, and no other
            others = {n for n in module.__all__ if not isinstance(getattr(module, n), FunctionType | type)}
            assert {f"{home}.{name}" for name in others} <= shown
