"""What a run consists of: the train state, its optimizer, adapters, shardings and checkpoints."""
