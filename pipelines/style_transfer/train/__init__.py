"""The trainings of style transfer, one task a file."""
