"""Curvature: operators that are never formed, and estimators that only multiply by them."""
