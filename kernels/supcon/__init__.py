"""The supervised contrastive loss on the GPU: ``launchers`` is where to begin."""
