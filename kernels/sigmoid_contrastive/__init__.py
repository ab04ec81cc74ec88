"""The sigmoid contrastive loss on the GPU; begin reading at ``launchers``."""
