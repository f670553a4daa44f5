"""The colours of plots and overlays: Okabe and Ito's palette, told apart with every common colour blindness."""

from __future__ import annotations

# By expression; black, the first of the palette, gives way to grey.
PALETTE = ("#B8B8B8", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#E69F00", "#56B4E9")
TRACK_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Viridis in eight steps: of probabilities from 0 to 1, between the steps in proportion.
HEAT = ("#440154", "#472D7B", "#3B528B", "#2C728E", "#21918C", "#28AE80", "#5EC962", "#ADDC30", "#FDE725")


def track_colour(track_id: int) -> str:
    """Return the colour of a person, as #RRGGBB; it is the same in the plot and in the overlay."""
    return TRACK_COLOURS[track_id % len(TRACK_COLOURS)]
