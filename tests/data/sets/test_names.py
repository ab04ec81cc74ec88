"""The names that commands show are those that are read."""

from __future__ import annotations

from cmx_fast.data.sets import names
from cmx_fast.data.sets.boxed_pictures import BOXED_SETS
from cmx_fast.data.sets.labelled_pictures import LABELLED_SETS
from cmx_fast.data.sets.masked_pictures import MASKED_SETS
from cmx_fast.data.sets.scenes import SCENE_SETS
from cmx_fast.data.sets.sounding_objects import OBJECT_SETS
from cmx_fast.data.sets.video_sets import VIDEO_SETS


def test_every_name_is_read_and_every_reader_is_named():
    assert set(SCENE_SETS) == set(names.SCENES)
    assert set(names.VIDEO_SCENES) == set(names.SCENES) & set(VIDEO_SETS)
    assert set(OBJECT_SETS) == set(names.SOUNDING_OBJECTS)
    assert set(MASKED_SETS) == set(names.MASKED)
    assert set(LABELLED_SETS) == set(names.LABELLED)
    assert set(BOXED_SETS) == set(names.BOXED)
