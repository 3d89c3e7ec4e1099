"""Fine-tuning: the step and the loop around it."""
