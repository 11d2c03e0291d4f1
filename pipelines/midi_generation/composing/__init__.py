"""How pieces are written: what may come next, what is chosen, and how it goes into the score."""
