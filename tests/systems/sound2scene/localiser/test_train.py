"""``cmx train localiser`` and ``cmx select`` on a few real videos."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("av", reason="needs the media extra")

from interruptions import assert_same_run, timeless, train_through_stops

from cmx_fast.data.sets.selection import read_selection
from cmx_fast.simulate.commands import simulate_clips
from cmx_fast.systems.sound2scene.localiser.commands import evaluate_localiser, select, train_localiser
from cmx_fast.systems.sound2scene.localiser.train import VideoBatches

TINY = ["size=32", "seconds=0.5", "width=8", "batch=4", "epochs=2", "moments=2"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are too small to share out, and on a busy machine threads wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("simulated") / "clips"
    simulate_clips(root, clips=16, width=48, height=32, seconds=1.25, fps=12, layout="vggsound", workers=1)
    return root


@pytest.fixture(scope="module")
def finished(data, one_thread, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "localiser"
    train_localiser(data, out=out, preset="demo", set=TINY)
    return out


def test_an_interrupted_run_has_the_same_numbers(data, finished, tmp_path, monkeypatch):
    rows = timeless(finished)
    assert rows[-1]["step"] == 6 and 0 <= rows[-1]["own_is_best"] <= 1

    def resumed():
        train_localiser(data, out=tmp_path, preset="demo", set=TINY, resume=True)

    assert train_through_stops(resumed, monkeypatch) == ["localiser"]
    assert_same_run(tmp_path, finished)


def test_a_selection_names_the_best_moments(data, finished, tmp_path, capsys):
    broken = next((data / "video").iterdir())
    whole = broken.read_bytes()
    try:
        broken.write_bytes(whole[: len(whole) // 2])
        select(finished, tmp_path / "s.json", split="train", top=3, workers=0)
    finally:
        broken.write_bytes(whole)
    found = read_selection(tmp_path / "s.json")
    assert len(found) in (11, 12) and all(len(frames) == 3 for frames in found.values())
    assert all(0 <= frame < 13 and len(set(frames)) == 3 for frames in found.values() for frame in frames)
    name = next(iter(found))
    assert len(name.split("_")[-1]) >= 5 and int(name.split("_")[-1]) - int(name.split("_")[-2]) == 10000
    assert "s.json: " in capsys.readouterr().err


def test_boxes_judge_a_run(data, finished, capsys):
    """VGG-SS's list beside VGGSound's videos; one of them is missing."""
    names = [file.stem for file in sorted((data / "video").iterdir())[:10]]
    entries = [
        {"file": name, "class": "ab"[i % 2], "bbox": [[0.2, 0.2, 0.7, 0.8]]} for i, name in enumerate(names)
    ]
    entries.append({"file": "gone_000001", "class": "a", "bbox": [[0, 0, 1, 1]]})
    (data / "vggss.json").write_text(json.dumps(entries))
    evaluate_localiser(finished, validation=0.3, workers=0)
    output = capsys.readouterr()
    assert "vggss: 10 pictures; 1 left out:" in output.err and "gone_000001.mp4" in output.err
    stored = json.loads((finished / "results.json").read_text())
    assert (stored["pictures"], stored["validation"], stored["dataset"]) == (10, 3, "vggss")
    for figures in stored["figures"].values():
        assert all(0 <= value <= 1 for value in figures.values())
    # The middle of these pictures is where the boxes are, whatever sounds.
    middle = stored["figures"]["middle"]
    assert middle["hits"] == 1 and middle["silence false positives"] == 1
    page = (finished / "report.html").read_text()
    assert page.count("data:image/jpeg") == 7 * 5 and f'title="{names[0]}"' in page
    assert f"{100 * stored['figures']['localiser']['cIoU']:.1f} %" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "vegas"}, "dataset must be one of vggss, flickr; got 'vegas'"),
        ({"validation": 1.0}, r"validation must be in \(0, 1\), got 1.0"),
    ],
)
def test_an_evaluation_refuses(finished, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_localiser(finished, **options)


class Streams:
    """Eight videos whose pictures and sounds are their numbers; ``blind`` and ``deaf``: those that can't be read."""

    moments = 2

    def __init__(self, blind=(), deaf=()):
        self.blind, self.deaf = blind, deaf

    def __len__(self):
        return 8

    def pictures(self, batches):
        for batch in batches:
            shown = batch[[int(p) // 2 not in self.blind for p in batch]]
            if len(shown):
                yield shown, (shown // 2).byte()[:, None, None, None].expand(-1, 3, 2, 2)

    def sounds(self, batches):
        for batch in batches:
            heard = batch[[int(s) not in self.deaf for s in batch]]
            if len(heard):
                yield heard, heard.float()[:, None].expand(-1, 4)


@pytest.mark.parametrize("lost", ["blind", "deaf"])
@pytest.mark.parametrize("rows", [[0], [1], [3], [0, 1], [1, 3]])
def test_a_batch_that_one_stream_lacks_costs_no_other(lost, rows):
    """Batches of two; the first epoch's order says which videos they are of."""
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).split(2)
    gone = torch.cat([order[row] for row in rows]).tolist()
    batches = VideoBatches(Streams(**{lost: gone}), 2, 0, "cpu")(0)
    expected = [of for row, of in enumerate(order) if row not in rows]
    for of, batch in zip(expected, batches, strict=False):  # the batches never end
        assert batch["wave"][:, 0].tolist() == of.tolist()
        assert (255 * batch["picture"][:, 0, 0, 0]).round().tolist() == of.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dataset": "vegas"},
            "dataset must be one of vggsound, kinetics, folder; got 'vegas'",
        ),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16"),
        ({"set": ["batch=64"]}, "12 videos to train on are fewer than a batch of 64"),
    ],
)
def test_what_can_not_be_trained(data, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train_localiser(data, **{"out": tmp_path, "preset": "demo", "set": TINY, **options})


def test_a_run_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json; cmx train localiser --out makes one"):
        select(tmp_path, tmp_path / "s.json")
