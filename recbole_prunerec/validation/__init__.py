"""What is wrong with what the user asks for, said at once and before hours are spent. Only `preflight` imports what is heavy."""
