"""The index of embedded files: what it finds, leaves out and refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cmx_fast.data.media.files import BrokenFileError
from cmx_fast.search.embedders import kind_of, open_embedder
from cmx_fast.search.index import Index, embed_files, find_files
from cmx_fast.search.page import write_page


@pytest.fixture
def index(tmp_path):
    rows = F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    kinds = ("image", "audio", "image", "audio", "image", "audio", "audio")
    files = tuple(tmp_path / f"ä \udce9{i}, a" for i in range(7))
    return Index(rows, files, kinds, tmp_path / "run", "csir", 2)


def test_nearest_are_those_of_the_largest_cosine(index):
    query = F.normalize(torch.ones(5), dim=0)
    cosines = index.embeddings @ query
    found = index.nearest(query, 3, ["audio"])
    expected = sorted((float(cosines[row]), row) for row in (1, 3, 5, 6))[::-1][:3]
    assert [row for row, _ in found] == [row for _, row in expected]
    assert [cosine for _, cosine in found] == pytest.approx([cosine for cosine, _ in expected])
    assert len(index.nearest(query, 50, ["audio", "image"])) == 7
    with pytest.raises(ValueError, match="no file of the kinds video"):
        index.nearest(query, 1, ["video"])
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        index.nearest(query, 0, ["image"])


def test_an_index_is_read_as_it_was_written(index, tmp_path):
    index.write(tmp_path / "index")
    again = Index.read(tmp_path / "index")
    assert again.embeddings.equal(index.embeddings)
    assert again.files == index.files and again.kinds == index.kinds
    assert (again.run, again.model, again.seed) == (index.run, "csir", 2)


def test_damage_is_named(index, tmp_path):
    with pytest.raises(ValueError, match="holds no index: make one with cmx embed --out"):
        Index.read(tmp_path)
    index.write(tmp_path / "index")
    np.save(tmp_path / "index/embeddings.npy", index.embeddings[:3].numpy())
    with pytest.raises(ValueError, match="damaged: 3 embeddings of 7 files"):
        Index.read(tmp_path / "index")
    (tmp_path / "index/embeddings.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="is damaged"):
        Index.read(tmp_path / "index")


def test_files_are_found_by_suffix_and_others_counted(tmp_path):
    for name in ("b.JPG", "deep/er/a.wav", "c.mp4", "notes.txt", "more.txt", "plain"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found, others = find_files([tmp_path], ("image", "audio"))
    assert [(path.name, kind) for path, kind in found] == [("b.JPG", "image"), ("a.wav", "audio")]
    assert others == {".txt": 2, ".mp4": 1, "no suffix": 1}
    assert kind_of(Path("x.MKV")) == "video"
    (tmp_path / "c.mp4").unlink()
    with pytest.raises(ValueError, match=r"no file with one of the suffixes \.mp4.*; there is 2 \.txt"):
        find_files([tmp_path], ("video",))
    with pytest.raises(ValueError, match="none is not a folder"):
        find_files([tmp_path / "none"], ("video",))


class Lengths:
    """Embeds a file's name by its length; names with an x are broken."""

    kinds = ("image",)

    def embed(self, file, kind):
        if "x" in file.stem:
            raise BrokenFileError(file, "is no picture")
        return torch.tensor([float(len(file.stem))])


def test_broken_files_are_left_out_and_named():
    files = [(Path(name), "image") for name in ("a.png", "x.png", "abc.png")]
    advanced = []
    embeddings, embedded, broken = embed_files(Lengths(), files, lambda: advanced.append(1))
    assert embeddings.tolist() == [[1.0], [3.0]] and embedded == [files[0], files[2]]
    assert broken == [(Path("x.png"), "is no picture")] and len(advanced) == 3
    with pytest.raises(ValueError, match=r"none of the 1 files can be used \(x.png: is no picture\)"):
        embed_files(Lengths(), files[1:2])


def test_only_runs_that_embed_are_opened(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        open_embedder(tmp_path)
    (tmp_path / "config.json").write_text('{"command": "train c2l"}')
    with pytest.raises(ValueError, match="a run of cmx train c2l, which does not embed files"):
        open_embedder(tmp_path)


def test_the_page_names_what_it_cannot_show(tmp_path):
    write_page(
        tmp_path / "deep/page.html", (tmp_path / "<q>.png", "image"), [(tmp_path / "s.wav", "audio", 0.5)]
    )
    page = (tmp_path / "deep/page.html").read_text()
    assert "&lt;q&gt;.png" in page and "<q>" not in page
    assert "cosine 0.500" in page and "s.wav: can&#39;t be decoded" in page
