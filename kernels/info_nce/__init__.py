"""InfoNCE on the GPU; begin reading at ``launchers``."""
