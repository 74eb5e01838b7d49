"""Geometry around and between minima: sharpness, noise, directions, slices and paths."""
