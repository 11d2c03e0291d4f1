"""MIDI generation; see pipeline.py."""
