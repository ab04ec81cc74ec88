"""Sound2Scene: pictures from sound."""
