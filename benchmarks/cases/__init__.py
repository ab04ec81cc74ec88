"""The cases of each operator: its problems, the formulas and packages that people use today, and ours."""
