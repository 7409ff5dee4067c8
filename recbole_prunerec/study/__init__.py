"""Many runs, one table: the whole comparison, the paper's tables and figures, and the search for settings. docs/compare.md tells of them."""
