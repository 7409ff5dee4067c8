"""PruneRec: language-model recommenders, pruned and restored, as an extension of RecBole."""

__version__ = "0.1.0"
