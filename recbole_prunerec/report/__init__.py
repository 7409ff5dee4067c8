"""What a run reports: costs, tables, intervals, figures, model cards."""
