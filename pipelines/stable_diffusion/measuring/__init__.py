"""How a text-to-image model is measured."""
