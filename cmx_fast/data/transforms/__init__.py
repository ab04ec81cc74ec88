"""Views of pictures and clips, and the reverberation of sounds."""
