"""The contenders that users run today: the formulas as they write them, and the packages that ship one."""
