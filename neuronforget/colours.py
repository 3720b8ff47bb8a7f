"""Colours and letters of every picture, for those too that are drawn without plotly."""

from __future__ import annotations

#: Okabe & Ito (2008).
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#606060"  # as far from these for the colour-blind as they are from one another
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
