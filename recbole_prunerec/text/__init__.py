"""Titles to tokens: the catalogue, the prompts, the tiny tokenizer."""
