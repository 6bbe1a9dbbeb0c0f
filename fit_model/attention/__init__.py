"""Attention operators, one file each; the registry is `fit_model.attention.operators`."""
