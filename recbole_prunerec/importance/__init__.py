"""Importance criteria: each scores the parts of a model and cuts nothing."""
