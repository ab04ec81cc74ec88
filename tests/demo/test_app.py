"""The page of cmx demo-page, by Flask's own client and in a browser where one is found."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

pytest.importorskip("flask", reason="needs the demo extra")

from werkzeug.serving import make_server

from cmx_fast.data.media.files import read_audio, read_picture
from cmx_fast.demo import commands
from cmx_fast.demo.app import new_app, searching, segmenting
from cmx_fast.demo.commands import demo_page
from cmx_fast.search.embedders import KINDS
from cmx_fast.search.index import Index
from cmx_fast.train.picture_segmenter import PictureSegmenter

SUFFIXES = [*KINDS["image"], *KINDS["audio"]]


class Loudness:
    """Pictures by their brightness, sounds by their level: unit vectors of two numbers."""

    kinds = ("image", "audio")

    def embed(self, file, kind):
        if kind == "image":
            value = read_picture(file, 8).float().mean() / 255
        else:
            value = read_audio(file, 8000, 8000).abs().mean()
        return F.normalize(torch.stack([value, 1 - value]), dim=0)


class Brightest(PictureSegmenter):
    def __init__(self):
        super().__init__(("warm", "cold"), (0, 1, 1), 32)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def scores(self, picture: Tensor) -> Tensor:
        return F.avg_pool2d(picture, 8) * self.weight


def png(*colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 30), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    files = []
    for name, level in (("quiet<b>.wav", 0.02), ("loud.wav", 0.9)):
        soundfile.write(folder / name, np.full(8000, level, np.float32), 8000)
        files.append((folder / name, "audio"))
    (folder / "dark.png").write_bytes(png(20, 20, 20))
    files.append((folder / "dark.png", "image"))
    rows = torch.stack([Loudness().embed(*file) for file in files])
    return Index(rows, *zip(*files), folder, None, None)


@pytest.fixture(scope="module")
def app(index):
    return new_app("A search", Loudness.kinds, searching(Loudness(), index))


def post(app, name, content):
    return app.test_client().post("/", data={"file": (io.BytesIO(content), name)})


def test_a_dropped_picture_finds_the_nearest_sounds(app):
    answer = post(app, "my <photo>.PNG", png(255, 255, 255))
    assert answer.status_code == 200
    assert answer.text.index("loud.wav") < answer.text.index("quiet&lt;b&gt;.wav")
    assert answer.text.count("data:audio/mpeg") == 2 and answer.text.count("data:image/jpeg") == 1
    assert (
        "my &lt;photo&gt;.PNG" in answer.text and "<b>" not in answer.text and "dark.png" not in answer.text
    )


def test_a_dropped_sound_finds_pictures(app, index):
    answer = post(app, "sound.wav", index.files[0].read_bytes())
    assert "dark.png" in answer.text and answer.text.count("data:audio/mpeg") == 1


def test_files_that_can_not_be_used_are_named(app):
    for name, content, says in (
        ("a.txt", b"x", "a.txt is none of " + ", ".join(SUFFIXES)),
        ("a.png", b"x", "a.png: can&#39;t be decoded (cannot identify image file &#39;a.png&#39;)"),
        ("../../a.mp4", b"x", "a.mp4 is none of"),
    ):
        answer = post(app, name, content)
        assert answer.status_code == 400 and says in answer.text
    assert app.test_client().post("/").status_code == 400


def test_names_that_others_gave_this_machine_are_not_answered(app):
    assert app.test_client().get("/", base_url="http://127.0.0.1:7860").status_code == 200
    assert app.test_client().get("/", base_url="http://elsewhere.example").status_code == 400


def test_the_page_needs_nothing_from_elsewhere(app):
    start = app.test_client().get("/")
    assert start.status_code == 200 and "Drop a picture or a sound here" in start.text
    assert f'accept="{",".join(SUFFIXES)}"' in start.text
    assert not re.search(r'(?:src|href|action)="(?!data:|#)|https?://|@import|url\(', start.text)


def test_a_run_that_segments_shows_labels():
    app = new_app("Segments", ("image",), segmenting(Brightest()))
    answer = post(app, "red.png", png(200, 0, 0))
    assert answer.text.count("data:image/jpeg") == 2
    assert "warm 100.0 %" in answer.text and "cold" not in answer.text


def test_the_command_serves_this_machine_alone(index, tmp_path, monkeypatch, capsys):
    made = []

    class Server:
        server_port = 1234

        def __init__(self, host, port, app):
            made.append((host, port, app))

        def serve_forever(self):
            made.append("served")

    monkeypatch.setattr("werkzeug.serving.make_server", Server)
    opened = []
    monkeypatch.setattr(
        "cmx_fast.search.embedders.open_embedder", lambda run, **options: opened.append(options) or Loudness()
    )
    index.write(tmp_path / "index")
    demo_page(index=tmp_path / "index", port=0, encoder_file=tmp_path / "a", device="cuda:1")
    assert (opened[0]["encoder_file"], opened[0]["device"]) == (tmp_path / "a", "cuda:1")
    assert made[0][:2] == ("127.0.0.1", 0) and made[1] == "served"
    assert "http://127.0.0.1:1234" in capsys.readouterr().out
    assert f"Searching 3 files by {index.run.name}" in made[0][2].test_client().get("/").text
    with pytest.raises(ValueError, match="give --index, that cmx embed wrote, or --run"):
        demo_page()
    (tmp_path / "config.json").write_text('{"command": "train csir"}')
    with pytest.raises(ValueError, match="device must be cpu, cuda or cuda:N; got 'gpu'"):
        demo_page(tmp_path, device="gpu")
    with pytest.raises(ValueError, match="does not segment pictures; .*; to search, give --index"):
        demo_page(tmp_path)
    assert commands.HOST == "127.0.0.1"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

#: Drops a picture on the page as a hand would.
DROPPED = """<script>
  const bytes = Uint8Array.from(atob("%s"), letter => letter.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
  addEventListener("load", () => drop.dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true})));
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_drops_a_picture(index, tmp_path):
    app = new_app("A search", Loudness.kinds, searching(Loudness(), index))

    @app.get("/dropping")
    def dropping():
        page = (
            app.test_client().get("/").text.replace('<form method="post"', '<form method="post" action="/"')
        )
        return page.replace("</body>", DROPPED % base64.b64encode(png(255, 255, 255)).decode() + "</body>")

    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        browser = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=20000",
            "--dump-dom",
        ]
        shown = subprocess.run(
            [*browser, f"--user-data-dir={tmp_path}", f"http://127.0.0.1:{server.server_port}/dropping"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
    finally:
        server.shutdown()
    assert "dropped.png" in shown and "Nearest, best first" in shown
    assert shown.index("loud.wav") < shown.index("quiet")
