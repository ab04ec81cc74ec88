"""InfoNCE on the GPU: ``launchers`` is where to begin."""
