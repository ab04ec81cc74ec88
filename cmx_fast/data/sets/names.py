"""The names of the layouts that commands take, by what is read of them; no reader is imported for its name."""

from __future__ import annotations

#: Scenes: a picture and the sound at its moment.
SCENES = ("kinetics", "vggsound", "folder", "vegas", "pairs", "pictures")
#: Scenes with sound.
SOUNDING = SCENES[:-1]
#: Scenes of videos: their moments can be chosen.
VIDEO_SCENES = ("vggsound", "kinetics", "folder")
#: Pictures with boxes of what sounds.
SOUNDING_OBJECTS = ("vggss", "flickr")
#: Pictures with masks, with a class, with boxes of objects.
MASKED, LABELLED, BOXED = ("folder", "voc"), ("folder", "cub"), ("voc",)
#: Pictures that C2L trains on; "folder" with masks or without.
PARSED = ("atr", "voc", "folder")
#: The classes of VEGAS, whose folders they name.
VEGAS_CLASSES = (
    "baby_cry", "chainsaw", "dog", "drum", "fireworks",
    "helicopter", "printer", "rail_transport", "snoring", "water_flowing",
)  # fmt: skip
