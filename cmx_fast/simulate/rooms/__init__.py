"""Rooms with impulse responses, pictures and speech, in Image2Reverb's layout."""
