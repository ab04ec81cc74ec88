"""Views of pictures and clips, and rooms for sounds."""
