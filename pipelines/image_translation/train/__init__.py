"""The trainings of image translation, one task a file."""
