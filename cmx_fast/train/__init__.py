"""Training: the loop, its run folder and its batches, and one command per system."""
