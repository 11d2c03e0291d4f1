"""The networks of style transfer, one architecture a file."""
