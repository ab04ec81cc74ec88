"""Measures a case: problems, providers, times, memory, errors, reports."""
