"""Batches from files or memory."""
