"""The generator of pictures that Sound2Scene aligns its sounds with."""
