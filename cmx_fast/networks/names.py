"""The names by which recipes choose networks; they are read without importing any network."""

from __future__ import annotations

#: Gates of ResNets. "": none. Clips have no "cbam": its second gate is a picture's.
ATTENTIONS = ("", "se", "cbam", "non-local")
#: Blocks per stage of the encoders with a pyramid. "resnet18" is the papers'; "resnet10" is for small machines.
BACKBONES = {"resnet18": [2, 2, 2, 2], "resnet10": [1, 1, 1, 1]}
