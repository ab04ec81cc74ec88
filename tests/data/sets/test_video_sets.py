"""Adapters on small trees in the layouts in which the sets are distributed."""

from __future__ import annotations

import pytest

from cmx_fast.data.sets.audio_sets import dcase2013, dcase2014, esc50
from cmx_fast.data.sets.layouts import recognised
from cmx_fast.data.sets.own_files import part as part_of
from cmx_fast.data.sets.scenes import SCENE_SETS
from cmx_fast.data.sets.video_sets import VIDEO_SETS, folder, hmdb51, kinetics, ucf101, vggsound


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


def test_dcase2014(tmp_path):
    touch(tmp_path, *(f"scenes_stereo/{n}.wav" for n in ("bus01", "bus02", "tubestation10")))
    assert names_and_classes(dcase2014(tmp_path, "train")) == [
        ("bus01", "bus"),
        ("bus02", "bus"),
        ("tubestation10", "tubestation"),
    ]
    with pytest.raises(ValueError, match="there is no folder"):
        dcase2014(tmp_path, "test")
    touch(tmp_path, *(f"scenes_stereo_testset/{n}.wav" for n in ("park01", "tubestation11", "readme")))
    for split, numbers in {"train": [0, 0, 2], "test": [1, 2]}.items():
        recordings = dcase2014(tmp_path, split)
        assert recordings.class_names == ["bus", "park", "tubestation"]
        assert [entry.label for entry in recordings] == numbers
    assert [(path.name, reason) for path, reason in recordings.skipped] == [
        ("readme.wav", "is not called <class><number>")
    ]


def test_dcase2013_has_five_folds_of_its_development_set(tmp_path):
    touch(tmp_path, *(f"scenes_stereo/{c}{n:02d}.wav" for c in ("bus", "park") for n in range(1, 11)))
    touch(tmp_path, "scenes_stereo_testset/bus01.wav")
    held_out = []
    for fold in range(1, 6):
        train, test = dcase2013(tmp_path, "train", fold), dcase2013(tmp_path, "test", fold)
        assert [entry.label for entry in test] == [0, 0, 1, 1] and len(train) == 16
        held_out += [entry.path for entry in test]
        assert not {entry.path for entry in train} & {entry.path for entry in test}
    assert len(set(held_out)) == 20
    assert [entry.name for entry in dcase2013(tmp_path, "test", 5)][:2] == ["bus09", "bus10"]
    with pytest.raises(ValueError, match="fold must be 1 to 5; got 6"):
        dcase2013(tmp_path, "test", 6)


def test_kinetics_without_folders_of_classes(tmp_path):
    touch(
        tmp_path, "train/a_000001_000011.mp4", "train/b_000002_000012.webm", "train/yoga/c_000003_000013.mp4"
    )
    assert [reason for _, reason in kinetics(tmp_path, "train").skipped] == [
        "lies in no class's folder, and there is no train.csv"
    ] * 2
    write(
        tmp_path / "train.csv",
        "label,youtube_id,time_start,time_end,split\nair drumming,a,1,11,train\nyoga,b,2,12,train\nyoga,c,3,13,train\n",
    )
    recordings = kinetics(tmp_path, "train")
    assert names_and_classes(recordings) == [
        ("a_000001_000011", "air drumming"),
        ("b_000002_000012", "yoga"),
        ("c_000003_000013", "yoga"),
    ]
    assert not recordings.skipped


def test_a_folder_is_split_by_the_names_of_its_videos(tmp_path):
    names = [f"clip {number}" for number in range(300)]
    touch(tmp_path, *(f"{name}.mp4" for name in names), "notes.txt")
    splits = {split: [entry.name for entry in folder(tmp_path, split)] for split in ("train", "val", "test")}
    assert sorted(name for part in splits.values() for name in part) == sorted(names)
    shares = [len(part) / 300 for part in splits.values()]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.05)
    # Neither new videos nor another folder or container moves a video to another part.
    moved = tmp_path / "moved"
    touch(moved, *(f"{number % 7}/{name}.webm" for number, name in enumerate(names)), "0/new.mp4")
    for split, part in splits.items():
        assert sorted({entry.name for entry in folder(moved, split)} - {"new"}) == sorted(part)
    # By the first bytes of SHA-256: anybody can find a video's part.
    assert [part_of(name) for name in ("a", "b", "abc", "hello")] == ["val", "train", "val", "train"]
    assert [path.name for path, _ in folder(tmp_path, "train").skipped] == ["notes.txt"]


def test_classes_of_a_folder(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "dogs/hello.mp4", "cats/abc.mp4")
    assert names_and_classes(folder(tmp_path, "train")) == [("b", "unlabelled"), ("hello", "dogs")]
    write(tmp_path / "classes.csv", "name,label\ndogs/hello.mp4,speech\nabc,music\n")
    recordings = folder(tmp_path, "train")
    assert recordings.class_names == ["music", "speech", "unlabelled"]
    assert names_and_classes(recordings) == [("b", "unlabelled"), ("hello", "speech")]
    assert not recordings.skipped
    with pytest.raises(ValueError, match="split must be one of 'train', 'val', 'test'; got 'dev'"):
        folder(tmp_path, "dev")
    with pytest.raises(ValueError, match="there is no folder"):
        folder(tmp_path / "nowhere", "train")
    (tmp_path / "classes.csv").write_text("name,label\na,x\na.mp4,y\n")
    with pytest.raises(ValueError, match="line 3: 'a.mp4' has two labels, 'x' and 'y'"):
        folder(tmp_path, "train")


def test_a_table_of_videos(tmp_path):
    touch(tmp_path, "a.mp4", "phone/b.MOV", "c.mp4", "d.txt")
    table = tmp_path / "lists" / "videos.csv"
    write(
        table,
        "path;label;split\n../a.mp4;dog;test\n../phone/b.MOV;cat;train\n../c.mp4;;train\n../gone.mp4;dog;train\n"
        "../d.txt;dog;train\n",
    )
    train = folder(table, "train")
    assert train.class_names == ["cat", "dog", "unlabelled"]
    assert names_and_classes(train) == [("b", "cat"), ("c", "unlabelled")]
    assert [(path.name, reason.split(",")[0]) for path, reason in train.skipped] == [
        ("gone.mp4", "listed in videos.csv"),
        ("d.txt", "does not end in .mp4"),
    ]
    assert names_and_classes(folder(table, "test")) == [("a", "dog")]
    with pytest.raises(ValueError, match=r"none of its 4 files .* is in the part 'val'; .* path,split"):
        folder(table, "val")
    # Without the column the parts follow from the names, as in a folder.
    write(table, "path\n../a.mp4\n../c.mp4\n")
    assert [name for split in ("train", "val", "test") for name in names_in(table, split)] == ["c", "a"]
    write(table, "path,split\n../a.mp4,train\n../a.mp4,test\n")
    with pytest.raises(ValueError, match="line 3: '../a.mp4' is listed twice"):
        folder(table, "train")
    write(table, "path,split\n../a.mp4,training\n")
    with pytest.raises(ValueError, match="line 2: split is 'training', expected train or val or test"):
        folder(table, "train")


def names_in(table, split):
    try:
        return [entry.name for entry in folder(table, split)]
    except ValueError:
        return []


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        (["train/dog/x.mp4", "val/dog/y.mp4"], "kinetics"),
        (["train/dog/x.jpg", "val/dog/y.jpg"], "pictures"),
        (["a.jpg", "b/c.png"], "pictures"),
        (["train/dog/x.mp4", "more/y.mov"], "folder"),
        (["holiday/x.MOV", "holiday/cover.jpg"], "folder"),
        (["vggsound.csv", "video/x_000001.mp4"], "vggsound"),
        (["vggsound.csv", "audios/x_000001.wav", "images/x_000001.jpg"], "pairs"),
        (["train/audios/x.wav", "train/images/x.jpg"], "pairs"),
        (["dog/audios/x.wav", "dog/img/x.jpg"], "vegas"),
    ],
)
def test_layouts_are_recognised(tmp_path, files, layout):
    touch(tmp_path, *files)
    assert recognised(tmp_path, SCENE_SETS) == layout


def test_a_layout_that_is_none_of_the_choices(tmp_path):
    touch(tmp_path, "ucfTrainTestlist/classInd.txt", "videos.csv")
    assert recognised(tmp_path, VIDEO_SETS) == "ucf101"
    assert recognised(tmp_path / "videos.csv", VIDEO_SETS) == "folder"
    with pytest.raises(ValueError, match=r"has none of the layouts atr, voc; name one by --dataset"):
        recognised(tmp_path, ["atr", "voc"])
    with pytest.raises(ValueError, match="data: there is no .*nowhere"):
        recognised(tmp_path / "nowhere", VIDEO_SETS)


@pytest.mark.parametrize(
    "rows", ["label,youtube_id,time_start\na,b,1\n", "label,youtube_id,time_start,time_end\na,b,1\n", ""]
)
def test_a_kinetics_list_without_its_columns_is_named(tmp_path, rows):
    (tmp_path / "train").mkdir()
    (tmp_path / "train.csv").write_text(rows)
    with pytest.raises(ValueError, match=r"train.csv"):
        kinetics(tmp_path, "train")
