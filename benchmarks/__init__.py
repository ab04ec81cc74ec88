"""Benchmarks of the operators against the formulas and packages that their users run today.

``cmx bench`` measures and writes ``benchmarks/results/<machine>.json`` with a table and a plot; ``pytest benchmarks/``
measures small cases under pytest-benchmark; ``python -m benchmarks.device`` is the suite for a GPU;
``cmx bench data DIR`` loads your own media files beside plain loops.
"""
