"""How far a point of an edit has come, and which strength of an edit is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DAMAGE = 0.05  # rise of the retain loss, nats per answer token

Point = Mapping[str, Any]  # "strength", and corpus -> metric -> mean over examples


def judged(point: Point, corpus: str = "unseen") -> float:
    """Return what is left of the answers, nats, lower is further: KL from the gold twin's, where there is a twin.

    Without one the log-probability of the answers, by token. Asked in phrasings that no edit saw, where there are some.
    """
    values = point[corpus if corpus in point else "forget"]
    return float(values["kl_gold"] if "kl_gold" in values else -values["nll"])


def judged_by(point: Point, corpus: str = "unseen") -> str:
    """Return what `judged` is called at the head of a column."""
    where = corpus if corpus in point else "forget"
    return f"{'KL' if 'kl_gold' in point[where] else 'log p'} {where}"


def exact(point: Point, corpus: str = "unseen") -> float:
    """Return exact match; on forget itself where no phrasing was kept from the edits."""
    return float(point[corpus if corpus in point else "forget"]["exact_match"])


def chosen_point(points: Sequence[Point], start: Point) -> dict[str, Any]:
    """Return the tuned point, the untouched model's among them: within DAMAGE on retain, furthest on forget."""
    allowed = [start, *(p for p in points if p["retain"]["nll"] <= start["retain"]["nll"] + DAMAGE)]
    return dict(min(allowed, key=lambda point: judged(point, "forget")))
