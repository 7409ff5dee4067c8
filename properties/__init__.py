"""Settings as commented YAML, read with importlib.resources."""
