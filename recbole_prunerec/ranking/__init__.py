"""Ranking the whole catalogue with a language model over a prefix tree of titles."""
