"""Dense scores on the GPU."""
