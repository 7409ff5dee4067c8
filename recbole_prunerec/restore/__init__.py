"""Fine-tuning and restoration by distillation."""
