"""`plan`: which shapes meet a budget, the best of them tried out if one likes, and the steps that lead there. docs/planning.md tells of it."""
