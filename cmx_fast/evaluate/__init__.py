"""Evaluation: retrieval tables, Grad-CAM, the report, and one command per system."""
