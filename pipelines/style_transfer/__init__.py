"""Gatys, Johnson and AdaIN style transfer."""
