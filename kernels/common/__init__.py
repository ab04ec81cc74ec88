"""Device code and launch arithmetic that several kernels share."""
