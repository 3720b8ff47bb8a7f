"""Results: tidy rows with their intervals, the examples behind them, and measurements that are kept."""

from neuronforget.results.results import (
    BY_EDIT,
    COMPARED,
    MATCHED,
    Column,
    NoRow,
    Results,
    Tables,
    check_edit_names,
    example_rows,
    model_tables,
    tidy_row,
)

__all__ = [
    "BY_EDIT", "COMPARED", "Column", "MATCHED", "NoRow", "Results", "Tables", "check_edit_names", "example_rows",
    "model_tables", "tidy_row",
]  # fmt: skip
