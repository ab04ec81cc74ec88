"""Small stand-ins for the real data sets, written in their layouts."""
