"""Which days are trained on, who converted after them, and the rows that come of it."""
