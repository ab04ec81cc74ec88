"""The names of the layouts that commands take, by what is read of them; no reader is imported for its name."""

from __future__ import annotations

#: Scenes: a picture and the sound at its moment.
SCENES = ("kinetics", "vggsound", "folder", "vegas", "pairs", "pictures")
#: Scenes of videos: their moments can be chosen.
VIDEO_SCENES = ("vggsound", "kinetics", "folder")
#: Pictures with boxes of what sounds.
SOUNDING_OBJECTS = ("vggss", "flickr")
#: Pictures with masks, with a class, with boxes of objects.
MASKED, LABELLED, BOXED = ("folder", "voc"), ("folder", "cub"), ("voc",)
