"""The training of the Transformer-XL."""
