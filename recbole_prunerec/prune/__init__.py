"""From scores to a smaller model: the plan (what stays, and why) and the surgery (pure cuts)."""
