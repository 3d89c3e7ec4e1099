"""Fine-tuning: the step, where arrays live, checkpoints, and the loop around them."""
