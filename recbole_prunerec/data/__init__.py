"""Interactions: RecBole's dataset with exact time order, and the plain arrays the core works on."""
