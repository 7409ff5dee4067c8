"""Loading a language model, and knowing where its parts lie."""
