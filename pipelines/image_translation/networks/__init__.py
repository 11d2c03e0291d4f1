"""The networks of image translation, one architecture a file."""
