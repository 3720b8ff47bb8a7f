"""What a comparison found, in words: each sentence is read off the results, the unwelcome ones too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from neuronforget.auditing import Audit
from neuronforget.findings.readings import Readings
from neuronforget.neurons import Neurons
from neuronforget.results import MATCHED, NoRow, Results

NEAR = 0.05  # of what was known: within this an edit is said to reach the gold twin, or to do nothing
DAMAGE = 0.1  # of the retain answers: losing more is called destruction
#: What is said of selected neurons beside one random draw, which another draw might differ from as much.
BESIDE_ONE_DRAW = "the selected ones forget more than this random draw", "this random draw forgets more"


def describe(
    results: Results,
    neurons: Neurons | None = None,
    truth: Neurons | None = None,
    controls: Sequence[Neurons] = (),
    audits: Mapping[str, Audit] | None = None,
) -> Iterator[str]:
    """Yield one finding after the other; those whose inputs are missing, such as rows, are left out.

    Of results that are no comparison (a benchmark's, or without accuracy and probability) only audits are told.
    """
    reader = _Reader(results)
    told = [audited(name, audit) for name, audit in (audits or {}).items()]
    if not reader.readable:
        yield from told
        return
    located = [_localisation(neurons, truth, controls)] if truth is not None and neurons is not None else []
    for sentences in (reader.before(), reader.missing(), reader.unsound(), located, reader.ablation(), reader.trained(),
                      reader.destroyed(), reader.unseen(), reader.matched(), reader.over_erased(), reader.guards(),
                      told):  # fmt: skip
        with suppress(NoRow):
            yield from sentences
    yield (
        f"Not checked {'for the other edits' if audits else 'here'}: whether relearning, quantisation or other prompts "
        "bring the knowledge back. A low value on forget does not tell erased from hidden. "
        "The command neuronforget audit asks this question."
    )


def audited(name: str, audit: Audit) -> str:
    """Return the sentence about one edit's audit."""
    return f"Erased, or only hidden? {name}: {audit.words}"


def _localisation(neurons: Neurons, truth: Neurons, controls: Sequence[Neurons]) -> str:
    text = f"The {len(neurons)} selected neurons include {neurons.recall(truth):.0%} of the {len(truth)} true neurons."
    if controls:
        chance = sum(c.recall(truth) for c in controls) / len(controls)
        text += f" The controls, drawn from the other neurons, include {chance:.0%} on average. A blind draw would "
        text += f"include {len(neurons) / (len(neurons.layers) * neurons.width):.0%}."
    return text


class _Reader(Readings):
    """Reads sentences off results."""

    def before(self) -> Iterator[str]:
        """What was known at the start, and in which measure everything is said."""
        start, kept = self.value("untouched", "forget"), self.value("untouched", "retain")
        if self.metric == "exact_match":
            text = (
                f"Before any edit, the model answers {start:.1%} of the forget questions and {kept:.1%} of the retain "
                "questions."
            )
        else:
            text = (
                "Before any edit, the model writes hardly any forget answer exactly. The percentages below are "
                "therefore probabilities of the answer (per token). "
                f"Before any edit they are {start:.1%} on forget and {kept:.1%} on retain."
            )
        if self.floor is not None:
            text += f" The gold twin, which never saw the forget corpus, is at {self.floor:.1%} on forget. "
            text += "That is the target."
        yield text

    def missing(self) -> Iterator[str]:
        """Methods that are absent because they could not make their edit, and edits that could not be audited."""
        for name, why in self.results.info.get("not made", {}).items():
            yield f"Not in this comparison: {name} could not be made ({why})."
        for name, why in self.results.info.get("not audited", {}).items():
            yield f"Not audited: {name} ({why})."

    def unsound(self) -> Iterator[str]:
        """Edits whose model gives NaN: broken is not forgotten, and nothing else is said of them."""
        for name, count in self.broken.items():
            yield f"{name} breaks the model: NaN on up to {count} examples of a corpus. That is not forgetting."

    def ablation(self) -> Iterator[str]:
        """What ablating the selection did, and what ablating other neurons did."""
        if "ablate" not in self.edits or "untouched" not in self.edits:
            return
        start, left = self.value("untouched", "forget"), self.value("ablate", "forget")
        cost = 100 * (self.value("untouched", "retain") - self.value("ablate", "retain"))
        text = f"Ablating the selected neurons leaves forget at {left:.1%} and costs {cost:.1f} points on retain."
        if self.floor is not None:
            near = "within" if abs(left - self.floor) <= NEAR else "not within"
            text += f" The value on forget is {near} {100 * NEAR:.0f} points of the gold twin."
            text += "" if self.known > NEAR else " The untouched model hardly exceeds it: too little was known to tell."
        yield text
        values = [self.value(name, "forget") for name in self.named("control") if name.startswith("ablate@")]
        if not values:
            return
        little = NEAR * self.known
        if self.known <= NEAR:
            verdict = "too little was known to tell what this means"
        elif start - left <= little:
            verdict = "the selection does little, so this knowledge does not depend on the neurons that the score found"
        elif start - min(values) <= little:
            verdict = "random neurons do nothing"
        elif min(values) <= left:
            verdict = "at least one does no less than the selection, so its location explains nothing"
        else:
            verdict = "part of what ablation does needs no localisation"
        yield (
            f"Ablating the same number of other neurons ({len(values)} random and matched controls) leaves forget at "
            f"{min(values):.1%} to {max(values):.1%}: {verdict}."
        )

    def trained(self) -> Iterator[str]:
        """Does it matter which neurons are changed? Asked at matched damage: at full strength both may forget."""
        for method in ("npo", "ga", "rank_one"):
            here, there = f"{method}@neurons", f"{method}@random 0"
            if here not in self.edits or there not in self.edits:
                continue
            full = [self.value(name, "forget") for name in (here, there)]
            text = (
                f"{method} leaves forget at {full[0]:.1%} on the selected neurons and at {full[1]:.1%} on random ones."
            )
            matched = [self.row(name) for name in (here, there)]
            if matched[0] is not None and matched[1] is not None:
                text += f" At matched damage it is {matched[0]['value']:.1%} against {matched[1]['value']:.1%}: "
                text += self.verdict(matched[0], matched[1], *BESIDE_ONE_DRAW) + "."
            yield text

    def destroyed(self) -> Iterator[str]:
        """Methods whose forgetting is damage."""
        start = self.value("untouched", "retain")
        if start <= NEAR:
            yield (
                f"The untouched model knows hardly anything of retain ({start:.1%}): too little to tell by it what an "
                "edit destroys. See the loss on retain."
            )
            return
        lost = {n: start - self.value(n, "retain") for n in self.named("full", "neurons")}
        bad = sorted(((value, name) for name, value in lost.items() if value > DAMAGE * start), reverse=True)
        if bad:
            listed = ", ".join(f"{name} ({100 * value:.0f} points)" for value, name in bad)
            yield (
                f"Edits that destroy retained knowledge at full strength: {listed}. What these forget is damage, not "
                "erasure."
            )

    def unseen(self) -> Iterator[str]:
        """Are phrasings that the erasure never saw still answered? Asked at matched damage, else at full strength."""
        if not any(row["corpus"] == "forget unseen" for row in self.results.rows):
            return
        matched = any(row["point"] == "matched" for row in self.results.rows)
        point, when = ("matched", "At matched damage") if matched else ("full", "At full strength")
        pairs = {
            n: [self.value(n, c, point) for c in ("forget", "forget unseen")] for n in self.named("full", "neurons")
        }
        worse = {name: pair for name, pair in pairs.items() if pair[1] - pair[0] > NEAR}
        if worse:
            listed = ", ".join(f"{name} ({pair[0]:.1%} trained, {pair[1]:.1%} unseen)" for name, pair in worse.items())
            yield f"{when}, more is left in phrasings that the erasure never saw: {listed}."
        elif pairs:
            yield f"{when}, no method leaves over 5 points more in phrasings that the erasure never saw."

    def matched(self) -> Iterator[str]:
        """What is left where every method has cost the same; of equal ones the first answers more of retain."""
        for point, (budget, what) in MATCHED.items():
            if (most := self.results.info.get(budget)) is not None:
                yield from self.at(point, f"Each edit is weakened until {what} at most {most:g} nats per token.")

    def at(self, point: str, words: str) -> Iterator[str]:
        """One way to match."""
        known = {n: row for n in self.named("full", "neurons") if (row := self.row(n, point)) is not None}
        if not known:
            return
        order = sorted(known, key=lambda n: (known[n]["value"], -self.value(n, "retain", point)))
        listed = ", ".join(f"{n} {known[n]['value']:.1%}" for n in order)
        yield f"{words} What is left of forget: {listed}."
        if undone := [name for name in order if known[name]["strength"] == 0]:
            yield f"No strength of {', '.join(undone)} stays within that: the numbers are the untouched model's."
        whole, aimed = ([n for n in order if self.edits[n] == scope] for scope in ("full", "neurons"))
        if whole and aimed:
            pairs = self.pairs(len(whole), len(aimed))
            verdict = self.verdict(
                known[aimed[0]],
                known[whole[0]],
                "the neuron-level edit forgets more",
                "full-model training forgets more",
                pairs=pairs,
            )
            over = f" over all {pairs} such pairs" if pairs > 1 else ""
            yield (
                f"There, the best neuron-level edit ({aimed[0]}, {known[aimed[0]]['value']:.1%}) against the best "
                f"full-model edit ({whole[0]}, {known[whole[0]]['value']:.1%}): {verdict} (at 95%{over})."
            )

    def over_erased(self) -> Iterator[str]:
        """How far each method is from a model that never knew."""
        names = self.named("full", "neurons")
        if not names or not any(row["metric"] == "kl_gold" for row in self.results.rows):
            return
        far = {n: self.results.value(n, "forget", "kl_gold") for n in [*names, "untouched"]}
        order = sorted(names, key=lambda n: far[n])
        yield (
            f"On the forget corpus, {order[0]} is closest to the gold twin ({far[order[0]]:.2f} nats) and {order[-1]} "
            f"farthest ({far[order[-1]]:.2f}; the untouched model: {far['untouched']:.2f}). "
            "An edit that leaves little but is far from the twin has over-erased."
        )

    def guards(self) -> Iterator[str]:
        """What is hidden, no weight being changed."""
        left = {n: [f"{c} {self.value(n, c):.1%}" for c in ("forget", "retain")] for n in self.named("guard")}
        if listed := "; ".join(f"{name} {', '.join(values)}" for name, values in left.items()):
            yield f"Guards change no weight, so they erase nothing. With a guard on, the model answers: {listed}."
