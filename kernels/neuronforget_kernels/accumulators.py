"""What a pass adds up, one bit for each accumulator, and which of them a field or table entry needs.

Accumulators of a piece become rows of the per-example table; those of an item only ever meet their sum.
"""

from __future__ import annotations

from collections.abc import Collection

from neuronforget_kernels.reference import PIECE_FIELDS, TABLE_FIELDS

#: By piece: sum a g, sum g, sum (a - pivot), sum a^2, max and min.
S, U, SHIFT, SQUARE, PEAK = 1, 2, 4, 8, 16
#: By item: sum (a - pivot)^2, sum |a|, count(a > 0), sum |a g|, sum (a g)^2, sum g^2.
SHIFT2, ABS, POSITIVE, ABS_AG, AG2, G2 = 32, 64, 128, 256, 512, 1024
#: Those that need the gradient.
GRADIENT = S | U | ABS_AG | AG2 | G2

#: Sums in the order in which a CPU keeps them: those of pieces; the squares of the first three of these, and the rest.
SUMS = (SHIFT, U, S, SQUARE, SHIFT2, G2, AG2, ABS, POSITIVE, ABS_AG)

_NEEDS = {
    "mean": SHIFT,
    "m2": SHIFT | SHIFT2,
    "pool_mean": SHIFT,
    "pool_m2": SHIFT,
    "min": PEAK,
    "max": PEAK,
    "abs_sum": ABS,
    "positive": POSITIVE,
    "s": S,
    "abs_s": S,
    "s2": S,
    "u": U,
    "u2": U,
    "us": U | S,
    "abs_ag": ABS_AG,
    "ag2": AG2,
    "g2": G2,
    "sum_a": SHIFT,
    "sum_a2": SQUARE,
    "peak": PEAK,
}
#: The fields and table entries of which `fused_attribution` knows both factors but reduces nothing of `a` alone.
GRADIENT_FIELDS = tuple(name for name in PIECE_FIELDS if _NEEDS[name] & GRADIENT)
GRADIENT_TABLE = tuple(name for name in TABLE_FIELDS if _NEEDS[name] & GRADIENT)
#: What activations alone give.
ACTIVATION_FIELDS = tuple(name for name in PIECE_FIELDS if not _NEEDS[name] & GRADIENT)
ACTIVATION_TABLE = tuple(name for name in TABLE_FIELDS if not _NEEDS[name] & GRADIENT)


def wanted(fields: Collection[str], table: Collection[str]) -> int:
    """Return the bits of the accumulators that these fields and table entries need. Raises ValueError for others."""
    unknown = (set(fields) - set(PIECE_FIELDS)) | (set(table) - set(TABLE_FIELDS))
    if unknown:
        raise ValueError(f"no such field or table entry: {sorted(unknown)}; there are {PIECE_FIELDS}, {TABLE_FIELDS}")
    bits = 0
    for name in (*fields, *table):
        bits |= _NEEDS[name]
    return bits
