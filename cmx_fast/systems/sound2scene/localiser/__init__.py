"""The sound localiser that selects Sound2Scene's moments."""
