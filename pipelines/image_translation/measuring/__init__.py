"""How a translation is measured: what is read, who judges it, and the rows of the card."""
