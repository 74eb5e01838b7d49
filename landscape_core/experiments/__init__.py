"""Experiments: data, models, training and the parameters of a notebook."""
