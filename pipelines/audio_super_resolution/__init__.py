"""Audio super-resolution: the missing treble of a dull recording."""
