"""The whole of ``cmx train cmac`` on a few real videos, interrupted and resumed, with broken files among them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil

import pytest
import soundfile
import torch
import torch.nn.functional as F

pytest.importorskip("av", reason="needs the media extra")
pytest.importorskip("sklearn", reason="needs the train extra")

from interruptions import assert_same_run, timeless, train_through_stops
from PIL import Image
from torchvision import models

from cmx_fast.data.media.files import BrokenFileError
from cmx_fast.data.sets.video_sets import VIDEO_SETS
from cmx_fast.data.transforms.clip_views import MEAN, STD
from cmx_fast.explain.commands import gradcam
from cmx_fast.networks.visual_encoders import VisualEncoder, open_visual_encoder
from cmx_fast.search.embedders import open_embedder
from cmx_fast.simulate.commands import simulate_clips
from cmx_fast.systems.cmac import features
from cmx_fast.systems.cmac.commands import evaluate_cmac, evaluate_finetune, evaluate_retrieval, train_cmac
from cmx_fast.systems.cmac.embedder import CMACEmbedder
from cmx_fast.systems.cmac.features import extract, open_clips, spaced_clips
from cmx_fast.systems.cmac.frame_maps import keep_frame_maps, maps_file
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.systems.cmac.train import warmup

TINY = [
    "size=32", "short_side=32", "frames=4", "fps=6.0", "seconds=0.5", "width=8", "audio_width=8", "filters=16",
    "embedding=8", "epochs=2", "batch=6", "clips=2", "warmup_epochs=1",
]  # fmt: skip
MODELS = ["scratch", "single", "attention", "contrast", "cmac"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are too small to share out, and on a busy machine threads wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight classes, of each three recordings to train on and one held out."""
    root = tmp_path_factory.mktemp("simulated") / "clips"
    simulate_clips(root, clips=40, width=48, height=32, seconds=1.25, fps=12)
    return root


def train(data, out, *more, **options):
    train_cmac(data, out=out, preset="demo", set=[*TINY, *more], **options)


@pytest.fixture(scope="module")
def finished(data, one_thread, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "straight"
    train(data, out, "bank=16", model=["all"])
    return out


def test_a_run_leaves_everything_a_reader_needs(finished):
    results = json.loads((finished / "results.json").read_text())
    assert list(results["seeds"]) == MODELS and results["recordings"] == 8
    figures = results["seeds"]["cmac"][0]
    assert set(figures) == {
        "audio_to_video", "video_to_audio", "video_linear", "audio_linear", "guided", "predicted",
    }  # fmt: skip
    assert all(0 <= value <= 1 for value in figures.values())
    assert results["chance"]["audio_to_video"] == 1 / 8 and 0.02 < results["chance"]["guided"] < 0.3
    html = (finished / "report.html").read_text()
    assert html.count('alt="spectrogram"') == 4 * 6  # scratch has no pictures
    assert "CMAC without L_ac" in html and "<svg" in html
    rows = [row for row in timeless(finished) if row["stage"] == "seed0/cmac" and "loss" in row]
    assert rows[-1]["step"] == 10 and {"across", "video attention", "audio attention"} <= rows[-1].keys()


def test_evaluating_again_gives_the_same_figures(finished):
    before = json.loads((finished / "results.json").read_text())
    evaluate_cmac(finished)
    assert json.loads((finished / "results.json").read_text()) == before


def test_scratch_is_where_the_others_start(finished):
    weights = {
        name: torch.load(finished / "seed0" / f"{name}.pt", weights_only=True)["module"]
        for name in ("scratch", "attention")
    }
    # Attention consistency does not move the transformation that makes the filters.
    assert weights["scratch"]["video.transform.0.weight"].equal(
        weights["attention"]["video.transform.0.weight"]
    )
    assert not weights["scratch"]["video_saliency.0.weight"].equal(
        weights["attention"]["video_saliency.0.weight"]
    )


def test_an_interrupted_run_has_the_same_numbers_and_banks(data, finished, tmp_path, monkeypatch):
    def resumed():
        train(data, tmp_path / "run", "bank=16", model=["all"], resume=True)

    assert train_through_stops(resumed, monkeypatch) == [f"seed0/{model}" for model in MODELS[1:]]
    assert_same_run(tmp_path / "run", finished)
    assert (tmp_path / "run" / "results.json").read_text() == (finished / "results.json").read_text()
    weights = torch.load(finished / "seed0" / "cmac.pt", weights_only=True)["module"]
    assert weights["video_bank.ids"].min() >= 0  # the sixteen last keys, all of recordings


def test_broken_videos_are_named_and_training_goes_on(data, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    of_class = sorted((broken / "train" / "disc").iterdir())
    whole = of_class[0].read_bytes()
    of_class[0].write_bytes(whole[: len(whole) // 3])
    of_class[1].write_bytes(b"")
    of_class[2].write_text("not a video")
    train(broken, tmp_path / "run")
    said = capsys.readouterr().err
    assert "train: 29 recordings; 3 left out:" in said
    assert all(path.name in said for path in of_class[:3])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(config["skipped"]) == 3
    assert "3 recordings could not be used" in (tmp_path / "run" / "report.html").read_text()


def test_bfloat16_and_the_papers_optimiser(data, tmp_path):
    train(data, tmp_path, "optimizer=sgd", "lr=0.01", "head=mlp", "cosine=False", precision="bf16")
    assert (tmp_path / "report.html").exists()


def test_warm_up_and_cosine():
    assert [warmup(i, 10, first=4, cosine=False) for i in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmup(5, 10, first=0, cosine=True) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "preset must be one of paper, demo, ablation, speaker; got 'huge'"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16; got 'fp8'"),
        (
            {"model": ["clip"]},
            "model must be one or more of scratch, single, attention, contrast, cmac, all; got clip",
        ),
        (
            {"dataset": "ucf101"},
            "dataset must be one of kinetics, vggsound, folder; got 'ucf101'",
        ),
        ({"evaluate": "some"}, "evaluate must be none, retrieval or all; got 'some'"),
        ({"dataset": "kinetics", "split": "train"}, "split must be val or test for kinetics; got 'train'"),
        ({"set": ["levels=9", "lr"]}, "--set takes NAME=VALUE; got 'lr'"),
    ],
)
def test_bad_options_are_refused_before_any_work(tmp_path, options, message, monkeypatch):
    monkeypatch.setattr(features, "open_clips", None)
    with pytest.raises(ValueError, match=message):
        train_cmac(tmp_path, **options)


def test_fewer_recordings_than_a_batch(data, tmp_path):
    with pytest.raises(ValueError, match="32 recordings to train on are fewer than a batch of 64"):
        train(data, tmp_path, "batch=64")


TABLE_2 = {"none": ("levels=1", "norm=none"), "softmax": ("levels=1", "norm=softmax")} | {
    f"cosine x{levels}": (f"levels={levels}", "norm=cosine") for levels in (1, 2, 3)
}


def test_the_rows_of_table_2_differ(data, tmp_path):
    """Every row trains, and no two rows give the same weights: levels and norm reach the loss."""
    weights = {}
    for row, (levels, norm) in TABLE_2.items():
        options = [levels, norm, "last_stride=1", "epochs=1"]
        train(data, tmp_path / row, *options, evaluate="none")
        weights[row] = torch.load(tmp_path / row / "seed0" / "cmac.pt", weights_only=True)["module"]
        assert not (tmp_path / row / "results.json").exists()
        assert all("audio_to_video" not in line for line in timeless(tmp_path / row))
    heads = [state["video_saliency.0.weight"] for state in weights.values()]
    assert all(head.isfinite().all() for head in heads)
    assert not any(a.equal(b) for a, b in itertools.combinations(heads, 2))


def test_the_ablations_preset_is_the_papers():
    paper, ablation = CMACRecipe(), CMACRecipe.preset("ablation")
    changed = {n: v for n, v in ablation.as_dict().items() if v != paper.as_dict()[n]}
    assert changed == {"epochs": 50, "batch": 64, "jitter": 0.0}


def test_a_folder_of_videos_is_trained_on_chosen_by_and_tested_on(data, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for file in data.rglob("*.mp4"):
        shutil.copy(file, videos)
    run = tmp_path / "run"
    train(videos, run, "compare=moments", dataset="folder", evaluate="retrieval")
    parts = [len(VIDEO_SETS["folder"](videos, split)) for split in ("train", "val", "test")]
    chosen_by = json.loads((run / "results.json").read_text())
    assert chosen_by["recordings"] == parts[1] and chosen_by["protocol"]["split"] == "val"
    assert "mean cosine of the embeddings of each moment" in chosen_by["protocol"]["retrieval"]
    assert set(chosen_by["seeds"]["cmac"][0]) == {"audio_to_video", "video_to_audio"}
    evaluate_cmac(run, split="test", evaluate="all")  # one class: nothing to classify
    tested = json.loads((run / "results.json").read_text())
    assert tested["recordings"] == parts[2] and set(tested["seeds"]["cmac"][0]) == set(
        chosen_by["chance"]
    ) & set(tested["seeds"]["cmac"][0])
    assert 'held-out ones ("test")' in (run / "report.html").read_text()


def test_evaluation_of_some_recordings(data, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    evaluate_cmac(run, recordings=5, evaluate="retrieval")
    results = json.loads((run / "results.json").read_text())
    assert results["recordings"] == 5 and results["chance"]["audio_to_video"] == 1 / 5
    assert "video_linear" not in results["seeds"]["cmac"][0]


def test_an_unfinished_run_is_not_evaluated(finished, tmp_path):
    (tmp_path / "config.json").write_text((finished / "config.json").read_text())
    with pytest.raises(ValueError, match=r"is not finished: no seed0/scratch.pt"):
        evaluate_cmac(tmp_path)
    with pytest.raises(ValueError, match="is not a run folder"):
        evaluate_cmac(tmp_path / "nowhere")


MAPS = ["size=64", "short_side=64"]


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("encoder") / "shufflenet.pth"
    torch.save(models.shufflenet_v2_x0_5().state_dict(), file)
    return file


@pytest.fixture(scope="module")
def on_maps(data, one_thread, weights_file, tmp_path_factory):
    """A run on the maps of a pretrained encoder of the frames."""
    out = tmp_path_factory.mktemp("runs") / "maps"
    train(data, out, *MAPS, encoder=f"shufflenet_v2_x0_5={weights_file}")
    return out


def test_a_run_on_a_pretrained_encoders_maps(on_maps):
    config = json.loads((on_maps / "config.json").read_text())
    assert config["recipe"]["frame_channels"] == 1024
    results = json.loads((on_maps / "results.json").read_text())
    assert {"guided", "predicted"} <= results["seeds"]["cmac"][0].keys()
    baseline = results["frozen frames and log filterbanks"]
    assert set(baseline) == {"audio_to_video", "video_to_audio", "video_linear", "audio_linear"}
    assert "Frozen frames and log filterbanks" in (on_maps / "report.html").read_text()
    assert (on_maps / "report.html").read_text().count('alt="spectrogram"') == 6
    weights = torch.load(on_maps / "seed0" / "cmac.pt", weights_only=True)["module"]
    assert weights["video.encoder.layers.0.weight"].shape == (64, 1024, 1, 1, 1)


def test_the_maps_are_those_of_the_frames_and_computed_once(data, on_maps, weights_file, monkeypatch):
    recipe = CMACRecipe(**json.loads((on_maps / "config.json").read_text())["recipe"])
    clips = open_clips(VIDEO_SETS["kinetics"](data, "train"), recipe, "cpu")
    encoder = open_visual_encoder(f"shufflenet_v2_x0_5={weights_file}")
    row = torch.tensor([5])
    frames = next(spaced_clips(clips, recipe, row))
    with torch.no_grad():
        pictures = frames.clip.transpose(1, 2).flatten(0, 1) * 0.225 + 0.45
        expected = encoder.maps(pictures.clamp(0, 1))[-1].unflatten(0, (2, 4)).transpose(1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(VisualEncoder, "maps", None)
        keep_frame_maps(clips, encoder, recipe, maps_file(on_maps, "train"))
    kept = next(spaced_clips(clips, recipe, row))
    torch.testing.assert_close(kept.clip, expected, rtol=2e-3, atol=1e-3)
    assert (kept.wave - frames.wave).abs().max() < 1.01 / 32768
    assert kept.crop.sizes.equal(frames.crop.sizes)
    assert next(spaced_clips(clips.from_files(), recipe, row)).clip.equal(frames.clip)


def test_maps_of_a_finer_stride_and_a_part_of_the_frame(data, on_maps, weights_file, tmp_path):
    recipe = CMACRecipe(**json.loads((on_maps / "config.json").read_text())["recipe"])
    recipe = dataclasses.replace(recipe, frame_stride=16, window=(0.25, 0.0, 0.5, 0.75))
    clips = open_clips(VIDEO_SETS["kinetics"](data, "val"), recipe, "cpu")
    encoder = open_visual_encoder(f"shufflenet_v2_x0_5={weights_file}")
    frames = next(spaced_clips(clips, recipe, torch.tensor([2])))
    with torch.no_grad():
        pictures = frames.clip.transpose(1, 2).flatten(0, 1) * 0.225 + 0.45
        expected = encoder.maps(pictures.clamp(0, 1))[-2].unflatten(0, (2, 4)).transpose(1, 2)
    keep_frame_maps(clips, encoder, recipe, tmp_path / "maps.npy")
    kept = next(spaced_clips(clips, recipe, torch.tensor([2])))
    torch.testing.assert_close(kept.clip, expected, rtol=2e-3, atol=1e-3)
    seen = frames.crop
    height, width = seen.sizes[0].tolist()
    assert seen.side[0] == pytest.approx(min(0.5 * width, 0.75 * height))
    assert seen.left[0] + seen.side[0] / 2 == pytest.approx(width / 2)
    assert seen.top[0] + seen.side[0] / 2 == pytest.approx(0.375 * height)
    options = ["size=64", "short_side=64", "frame_stride=5"]
    with pytest.raises(ValueError, match="frame_stride must be one of shufflenet_v2_x0_5's, .*; got 5"):
        train(data, tmp_path / "run", *options, encoder=f"shufflenet_v2_x0_5={weights_file}")


def test_a_run_on_maps_is_evaluated_again_where_its_encoder_is_now(data, on_maps, weights_file, tmp_path):
    before = json.loads((on_maps / "results.json").read_text())
    run, moved = tmp_path / "run", tmp_path / "moved.pth"
    shutil.copytree(on_maps, run)
    shutil.copy(weights_file, moved)
    evaluate_cmac(run, encoder_file=moved)
    assert json.loads((run / "results.json").read_text()) == before
    evaluate_retrieval(run, data, "kinetics", encoder_file=moved)
    assert (run / "retrieval-kinetics.json").is_file()
    evaluate_finetune(run, data, "kinetics", encoder_file=moved, set=["epochs=1", "clips=1"])
    assert json.loads((run / "finetune-kinetics-cmac" / "results.json").read_text())["accuracy"] >= 0
    open_embedder(run, encoder_file=moved)
    torch.save(models.shufflenet_v2_x0_5().state_dict(), moved)
    with pytest.raises(ValueError, match="its weights are others"):
        evaluate_cmac(run, encoder_file=moved)
    with pytest.raises(ValueError, match="its weights are others"):
        open_embedder(run, encoder_file=moved)


def test_an_interrupted_run_on_maps_has_the_same_numbers(data, on_maps, weights_file, tmp_path, monkeypatch):
    spec = f"shufflenet_v2_x0_5={weights_file}"
    begun = train_through_stops(
        lambda: train(data, tmp_path / "run", *MAPS, encoder=spec, resume=True), monkeypatch
    )
    assert begun == ["seed0/cmac"]
    assert_same_run(tmp_path / "run", on_maps)


def test_encoders_that_can_not_be_used(data, weights_file, tmp_path):
    spec = f"shufflenet_v2_x0_5={weights_file}"
    with pytest.raises(ValueError, match="size must be a multiple of 32 for shufflenet_v2_x0_5; got 48"):
        train(data, tmp_path / "run", "size=48", "short_side=48", encoder=spec)
    with pytest.raises(ValueError, match="frame_channels are those of --encoder"):
        train(data, tmp_path / "run", "frame_channels=8")


def test_files_are_embedded_as_the_evaluation_does(data, finished, tmp_path):
    embedder = CMACEmbedder.from_run(finished)
    assert embedder.origin["split"] == "val" and 0 <= embedder.origin["figures"]["audio_to_video"] <= 1
    recipe = embedder.recipe
    clips = open_clips(VIDEO_SETS["kinetics"](data, "val"), recipe, "cpu")
    features = extract(embedder.model, clips)
    row = 3
    video = embedder.embed(clips.entries[row].path, "video")
    torch.testing.assert_close(video, F.normalize(features.video_embedding[row], dim=0), rtol=1e-4, atol=1e-5)
    wave = torch.cat([torch.randn(round(recipe.seconds * recipe.sample_rate)) * 0.1] * 2)
    soundfile.write(tmp_path / "a.wav", wave.numpy(), recipe.sample_rate, subtype="FLOAT")
    sound = embedder.embed(tmp_path / "a.wav", "audio")
    (batch,) = spaced_clips(clips, recipe, torch.tensor([row]))
    clip = embedder.encode_clip(batch.clip * STD + MEAN)
    torch.testing.assert_close(F.normalize(clip.mean(0), dim=0), video, rtol=1e-4, atol=1e-5)
    assert embedder.encode_sound(wave[None, :100]).shape == (1, recipe.embedding)
    assert sound.shape == video.shape and sound.norm() == pytest.approx(1, abs=1e-5)
    gradcam(finished, video=clips.entries[row].path, out=tmp_path / "shown.png")
    assert Image.open(tmp_path / "shown.png").size[1] > 700
    assert embedder.attend(clips.entries[row].path).maps["video guided"].dim() == 3
    with pytest.raises(
        ValueError, match="a CMAC run compares a video's pictures with its sound: give --video"
    ):
        gradcam(finished, audio=tmp_path / "a.wav")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(BrokenFileError, match=r"broken\.mp4"):
        embedder.embed(tmp_path / "broken.mp4", "video")
    with pytest.raises(ValueError, match="no model 'dscmr' of seed 0 to open; it has scratch, single"):
        CMACEmbedder.from_run(finished, model="dscmr")
