"""Adapters on small trees in the layouts in which the sets are distributed."""

from __future__ import annotations

import pytest

from cmx_fast.data.sets.audio_sets import dcase2013, esc50
from cmx_fast.data.sets.video_sets import hmdb51, kinetics, ucf101, vggsound


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def names_and_classes(recordings):
    return [(entry.name, recordings.class_names[entry.label]) for entry in recordings]


def test_kinetics_by_its_list_and_by_its_folders(tmp_path):
    touch(
        tmp_path,
        "val/abseiling/-3B32lodo2M_000059_000069.mp4",
        "val/air_drumming/_dbcJuKJQNs_000040_000050.mp4",
        "val/air_drumming/unlisted_000001_000011.mp4",
    )
    assert names_and_classes(kinetics(tmp_path, "val"))[1:] == [
        ("_dbcJuKJQNs_000040_000050", "air_drumming"),
        ("unlisted_000001_000011", "air_drumming"),
    ]
    write(
        tmp_path / "val.csv",
        "label,youtube_id,time_start,time_end,split,is_cc\nabseiling,-3B32lodo2M,59,69,val,0\n"
        '"air drumming",_dbcJuKJQNs,40,50,val,0\nabseiling,gone,1,11,val,0\n',
    )
    recordings = kinetics(tmp_path, "val")
    assert names_and_classes(recordings) == [
        ("-3B32lodo2M_000059_000069", "abseiling"),
        ("_dbcJuKJQNs_000040_000050", "air drumming"),
    ]
    assert [(path.name, reason) for path, reason in recordings.skipped] == [
        ("gone_000001_000011.mp4", "listed in val.csv, but not there")
    ]
    with pytest.raises(ValueError, match="has no folder train"):
        kinetics(tmp_path, "train")
    with pytest.raises(ValueError, match="split must be one of 'train', 'val', 'test'; got 'dev'"):
        kinetics(tmp_path, "dev")


@pytest.mark.parametrize("lists", [(), ("train",), ("val",), ("train", "val", "test")])
def test_kinetics_numbers_a_class_alike_in_all_splits(tmp_path, lists):
    classes = {"train": ("air drumming", "archery", "zumba"), "val": ("archery", "yoga"), "test": ("zumba",)}
    for split, labels in classes.items():
        touch(tmp_path, *(f"{split}/{label.replace(' ', '_')}/x_000001_000011.mp4" for label in labels))
        if split in lists:
            rows = "".join(f"{label},x,1,11,{split}\n" for label in labels)
            write(tmp_path / f"{split}.csv", f"label,youtube_id,time_start,time_end,split\n{rows}")
    names = ["air drumming" if "train" in lists else "air_drumming", "archery", "yoga", "zumba"]
    for split, numbers in {"train": [0, 1, 3], "val": [1, 2], "test": [3]}.items():
        recordings = kinetics(tmp_path, split)
        assert recordings.class_names == names
        assert [entry.label for entry in recordings] == numbers


def test_kinetics_lists_of_the_test_split_may_have_no_labels(tmp_path):
    touch(tmp_path, "train/yoga/x_000001_000011.mp4")
    write(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\nz,1,11,test\n")
    assert kinetics(tmp_path, "train").class_names == ["yoga"]


def test_vggsound(tmp_path):
    write(
        tmp_path / "vggsound.csv",
        '---g-f_I2yQ,1,"people marching, drums",test\n--0PQM4-hqg,30,waterfall,train\n',
    )
    touch(tmp_path, "video/---g-f_I2yQ_000001.mp4")
    assert names_and_classes(vggsound(tmp_path, "test")) == [("---g-f_I2yQ_000001", "people marching, drums")]
    with pytest.raises(
        ValueError, match=r"lists no file of the split 'train' that is there; the first missing"
    ):
        vggsound(tmp_path, "train")


@pytest.mark.parametrize("folder", ["UCF-101/", ""])
def test_ucf101(tmp_path, folder):
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 ApplyEyeMakeup\n2 Archery\n")
    write(
        lists / "trainlist02.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nArchery/v_Archery_g01_c01.avi 2\n",
    )
    write(lists / "testlist02.txt", "Archery/v_Archery_g09_c01.avi\n")
    for name in (
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01",
        "Archery/v_Archery_g01_c01",
        "Archery/v_Archery_g09_c01",
    ):
        touch(tmp_path, f"{folder}{name}.avi")
    assert [entry.label for entry in ucf101(tmp_path, "train", 2)] == [0, 1]
    assert names_and_classes(ucf101(tmp_path, "test", 2)) == [("v_Archery_g09_c01", "Archery")]
    with pytest.raises(ValueError, match=r"there is no .*trainlist01.txt"):
        ucf101(tmp_path, "train")
    with pytest.raises(ValueError, match="fold must be 1, 2 or 3; got 4"):
        ucf101(tmp_path, "train", 4)


def test_hmdb51(tmp_path):
    write(
        tmp_path / "splits/brush_hair_test_split1.txt",
        "a_brush_hair_u.avi 1\nb_brush_hair_u.avi 2\nc.avi 0\n",
    )
    write(tmp_path / "splits/wave_test_split1.txt", "d_wave.avi 1\n")
    touch(
        tmp_path,
        *(
            f"videos/{n}.avi"
            for n in ("brush_hair/a_brush_hair_u", "brush_hair/b_brush_hair_u", "wave/d_wave")
        ),
    )
    assert names_and_classes(hmdb51(tmp_path, "train")) == [
        ("a_brush_hair_u", "brush_hair"),
        ("d_wave", "wave"),
    ]
    assert names_and_classes(hmdb51(tmp_path, "test")) == [("b_brush_hair_u", "brush_hair")]


def test_esc50(tmp_path):
    rows = ["1-100032-A-0.wav,1,0,dog,True,100032,A", "2-1-A-14.wav,2,14,chirping_birds,False,1,A"]
    write(
        tmp_path / "meta/esc50.csv", "filename,fold,target,category,esc10,src_file,take\n" + "\n".join(rows)
    )
    touch(tmp_path, "audio/1-100032-A-0.wav", "audio/2-1-A-14.wav")
    assert names_and_classes(esc50(tmp_path, "test", 1)) == [("1-100032-A-0", "dog")]
    assert names_and_classes(esc50(tmp_path, "train", 1)) == [("2-1-A-14", "chirping_birds")]


def test_dcase2013(tmp_path):
    touch(tmp_path, *(f"scenes_stereo/{n}.wav" for n in ("bus01", "bus02", "tubestation10")))
    assert names_and_classes(dcase2013(tmp_path, "train")) == [
        ("bus01", "bus"),
        ("bus02", "bus"),
        ("tubestation10", "tubestation"),
    ]
    with pytest.raises(ValueError, match="there is no folder"):
        dcase2013(tmp_path, "test")
    touch(tmp_path, *(f"scenes_stereo_testset/{n}.wav" for n in ("park01", "tubestation11", "readme")))
    for split, numbers in {"train": [0, 0, 2], "test": [1, 2]}.items():
        recordings = dcase2013(tmp_path, split)
        assert recordings.class_names == ["bus", "park", "tubestation"]
        assert [entry.label for entry in recordings] == numbers
    assert [(path.name, reason) for path, reason in recordings.skipped] == [
        ("readme.wav", "is not called <class><number>")
    ]


@pytest.mark.parametrize(
    "rows", ["label,youtube_id,time_start\na,b,1\n", "label,youtube_id,time_start,time_end\na,b,1\n", ""]
)
def test_a_kinetics_list_without_its_columns_is_named(tmp_path, rows):
    (tmp_path / "train").mkdir()
    (tmp_path / "train.csv").write_text(rows)
    with pytest.raises(ValueError, match=r"train.csv"):
        kinetics(tmp_path, "train")
