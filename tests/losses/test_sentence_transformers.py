"""sentence-transformers' ranking loss beside the original and its cached kin: values and gradients, and a group's."""

from __future__ import annotations

import gathered_losses
import pytest
import torch
import torch.distributed as dist
from process_groups import run_ranks
from torch import Tensor, nn

pytest.importorskip(
    "sentence_transformers",
    reason="sentence-transformers is not installed; pip install 'cmx-fast[examples]' brings it",
)

from sentence_transformers.sentence_transformer import losses as originals
from sentence_transformers.util import cos_sim, dot_score, euclidean_sim

from cmx_fast.losses.sentence_transformers import FusedMultipleNegativesRankingLoss

DIRECTIONS = {
    "one": (("query_to_doc",), "joint"),
    "two": (("query_to_doc", "doc_to_query"), "joint"),
    "two softmaxes": (("query_to_doc", "doc_to_query"), "per_direction"),
    "same kind": (("query_to_doc", "query_to_query", "doc_to_doc"), "joint"),
    "all": (("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"), "joint"),
}
HARDNESS = (None, "in_batch_negatives", "hard_negatives", "all_negatives")


def rows(count: int, n: int = 9, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(n, 16, dtype=dtype, generator=generator) for _ in range(count)]


def value_and_gradients(loss: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = loss.compute_loss_from_embeddings(leaves, None)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_same(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-9) -> None:
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).norm() <= rtol * max(other.norm(), 1e-3), (mine, other)


@pytest.mark.parametrize("hardness", HARDNESS)
@pytest.mark.parametrize(("directions", "partition"), DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_it_is_the_original(negatives, directions, partition, hardness):
    for n in (1, 2, 9):
        for similarity in (cos_sim, dot_score):
            results = [
                value_and_gradients(
                    cls(
                        nn.Identity(), 5.0, similarity, directions=directions, partition_mode=partition,
                        hardness_mode=hardness, hardness_strength=2.0,
                    ),
                    rows(2 + negatives, n),
                )
                for cls in (FusedMultipleNegativesRankingLoss, originals.MultipleNegativesRankingLoss)
            ]  # fmt: skip
            assert_same(*results)


@pytest.mark.parametrize("name", ["one", "all"])
def test_no_score_matrix_is_kept(name):
    directions, partition = DIRECTIONS[name]
    loss = FusedMultipleNegativesRankingLoss(nn.Identity(), directions=directions, partition_mode=partition)
    embeddings = [x.requires_grad_() for x in rows(3, 1000, torch.float32)]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss.compute_loss_from_embeddings(embeddings, None)
    assert kept and max(kept) <= 2 * 1000 * 16


class Embedder(nn.Module):
    """Features {"x": (N, 6)} to their embedding, as a SentenceTransformer's modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 16).double()

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.layer(features["x"])}


@pytest.mark.parametrize(("directions", "partition"), DIRECTIONS.values(), ids=DIRECTIONS)
def test_through_the_model_beside_the_cached_loss(directions, partition):
    columns = [{"x": x[:, :6]} for x in rows(4)]
    results = []
    for cls, more in (
        (FusedMultipleNegativesRankingLoss, {}),
        (originals.MultipleNegativesRankingLoss, {}),
        (originals.CachedMultipleNegativesRankingLoss, {"mini_batch_size": 4}),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(Embedder())
        loss = cls(model, directions=directions, partition_mode=partition, **more)
        value = loss([dict(column) for column in columns], torch.tensor([]))
        value.backward()
        results.append([value.detach(), *(p.grad for p in model.parameters())])
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_wrappers_and_configuration_are_the_originals():
    ours, theirs = (
        cls(nn.Identity(), scale=7.0)
        for cls in (FusedMultipleNegativesRankingLoss, originals.MultipleNegativesRankingLoss)
    )
    assert ours.get_config_dict() == theirs.get_config_dict()
    assert ours.citation == theirs.citation
    assert isinstance(ours, originals.MultipleNegativesRankingLoss)


def test_another_similarity_takes_the_dense_formula_and_says_so(caplog):
    caplog.set_level("INFO", "cmx_fast")
    results = [
        value_and_gradients(cls(nn.Identity(), similarity_fct=euclidean_sim), rows(3))
        for cls in (FusedMultipleNegativesRankingLoss, originals.MultipleNegativesRankingLoss)
    ]
    assert_same(*results)
    assert "similarity_fct=euclidean_sim: the dense formula runs" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["one", "all"])
def test_other_dtypes_are_no_further_from_float64(name, dtype):
    directions, partition = DIRECTIONS[name]
    options = {"directions": directions, "partition_mode": partition}
    inputs = [x.to(dtype) for x in rows(3)]
    truth = value_and_gradients(
        originals.MultipleNegativesRankingLoss(nn.Identity(), **options), [x.double() for x in inputs]
    )
    ours, theirs = (
        value_and_gradients(cls(nn.Identity(), **options), inputs)
        for cls in (FusedMultipleNegativesRankingLoss, originals.MultipleNegativesRankingLoss)
    )
    for mine, other, exact in zip(ours, theirs, truth, strict=True):
        floor = 2 * torch.finfo(dtype).eps * exact.norm()
        assert (mine.double() - exact).norm() <= 1.5 * (other.double() - exact).norm() + floor


@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch.distributed without gloo"
)
def test_over_two_processes(tmp_path):
    for found in run_ranks(gathered_losses.sentence_transformers, 2, tmp_path):
        assert len(found) == 6
        for ours, theirs in found.values():
            assert_same(ours, theirs)


def test_refuses():
    loss = FusedMultipleNegativesRankingLoss(nn.Identity())
    with pytest.raises(ValueError, match="embeddings must be of queries and documents, at least 2; got 1"):
        loss.compute_loss_from_embeddings(rows(1), None)
    with pytest.raises(ValueError, match="[Ss]cale must be"):
        FusedMultipleNegativesRankingLoss(nn.Identity(), scale=0.0)
    with pytest.raises(ValueError, match="key has 8 features per row but query has 16"):
        loss.compute_loss_from_embeddings([rows(1)[0], rows(1)[0][:, :8]], None)
