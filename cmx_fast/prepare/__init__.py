"""Writes the tables of data sets from files that stay where they are."""
