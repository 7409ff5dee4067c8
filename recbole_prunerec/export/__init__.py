"""A step's model in the formats of other programs, each read back and compared before it gets its name."""
