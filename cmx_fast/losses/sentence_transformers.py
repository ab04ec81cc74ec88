"""sentence-transformers' ``MultipleNegativesRankingLoss`` without its score matrices; needs that package."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast import distributed
from cmx_fast._extras import require
from cmx_fast.losses._log_sum_exp import log_sum_exp
from cmx_fast.ops import info_nce
from cmx_fast.ops._checks import scale_tensor

require("sentence_transformers.sentence_transformer.losses", "examples")

from sentence_transformers.sentence_transformer.losses import (  # noqa: E402
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import all_gather_with_grad, cos_sim, dot_score, get_rank  # noqa: E402

logger = logging.getLogger("cmx_fast")


class FusedMultipleNegativesRankingLoss(MultipleNegativesRankingLoss):
    """sentence-transformers' ``MultipleNegativesRankingLoss`` (van den Oord et al. 2018, eq. 4) in O((N + M) D) memory.

    The constructor, its checks and the call are the original's, of which this is a subclass: ``model``, ``scale``,
    ``similarity_fct``, ``gather_across_devices``, ``directions``, ``partition_mode``, ``hardness_mode`` and
    ``hardness_strength``. Trainers and losses that wrap others, such as ``MatryoshkaLoss``, take it.

    - ``similarity_fct`` is ``cos_sim`` (default) or ``dot_score``. Any other takes the original's dense formula, and
      the log of "cmx_fast" says so.
    - With ``gather_across_devices`` and the directions "query_to_doc" alone, or with "doc_to_query" by
      ``partition_mode="per_direction"``, the loss is the whole batch's, the same in every process (the original's is
      the own rows' part; the mean is this), and rows go round a ring. Gradients are the original's: right once they
      are averaged. Other options gather all rows, as the original does.
    - The loss of half precision is float32, and so are the products of several directions or with hardness weights.

    Cost: one product of the queries with the documents forward, three backward; one and three more per further
    direction. Errors are the original's and those of :func:`cmx_fast.ops.info_nce`.
    """

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        if len(embeddings) < 2:
            raise ValueError(
                f"embeddings must be of queries and documents, at least 2; got {len(embeddings)}"
            )
        if self.similarity_fct not in (cos_sim, dot_score):
            name = getattr(self.similarity_fct, "__name__", self.similarity_fct)
            _say_once(f"similarity_fct={name}: the dense formula runs; cos_sim and dot_score have a kernel")
            return super().compute_loss_from_embeddings(embeddings, labels)
        hardness = self.hardness_mode is not None and self.hardness_strength > 0
        both = {"query_to_doc", "doc_to_query"}
        separate = self.partition_mode == "per_direction" or len(self.directions) == 1
        if hardness or not (separate and set(self.directions) <= both):
            return self._several_blocks(embeddings)
        loss = distributed.info_nce if self.gather_across_devices else info_nce
        queries, *documents = embeddings
        options: dict[str, Any] = {"normalize": self.similarity_fct is cos_sim}
        if set(self.directions) == both and len(documents) == 1:
            return loss(queries, documents[0], self.scale, symmetric=True, **options)
        forward = loss(queries, torch.cat(documents), self.scale, symmetric=False, **options)
        if set(self.directions) != both:
            return forward
        return (forward + loss(documents[0], queries, self.scale, symmetric=False, **options)) / 2

    def _several_blocks(self, embeddings: Sequence[Tensor]) -> Tensor:
        """One softmax over several directions, or with weighted negatives: the log-sum-exps of blocks, joined.

        Each block leaves out its rows' own documents, and so the positive, which then meets the others undiminished.
        """
        # In half precision each block's share of a gradient would be rounded before they are added.
        embeddings = [rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in embeddings]
        if self.similarity_fct is cos_sim:
            embeddings = [F.normalize(rows, dim=1) for rows in embeddings]
        (queries, *documents), first = embeddings, 0
        all_queries, all_documents = queries, documents
        if self.gather_across_devices:
            all_queries, *all_documents = map(all_gather_with_grad, embeddings)
            first = get_rank() * len(queries)
        scale = scale_tensor(self.scale, queries)
        own = torch.arange(first, first + len(queries), device=queries.device)
        mode = self.hardness_mode if self.hardness_strength > 0 else None

        def block(rows: Tensor, columns: Tensor, harder: bool = False) -> Tensor:
            if not harder:
                return log_sum_exp(rows, columns, scale, own)
            return self._harder(log_sum_exp(rows, columns, scale + self.hardness_strength, own))

        def pairs(documents: Tensor) -> Tensor:
            return (queries.to(scale.dtype) * documents.to(scale.dtype)).sum(1)

        positive = scale * pairs(documents[0])
        others = mode in ("in_batch_negatives", "all_negatives")
        blocks = {"query_to_doc": [block(queries, rows, others) for rows in all_documents]}
        if mode in ("hard_negatives", "all_negatives"):
            harder = scale + self.hardness_strength
            blocks["query_to_doc"] += [self._harder(harder * pairs(rows)) for rows in documents[1:]]
        else:
            blocks["query_to_doc"] += [scale * pairs(rows) for rows in documents[1:]]
        if "query_to_query" in self.directions:
            blocks["query_to_query"] = [block(queries, all_queries)]
        if "doc_to_query" in self.directions:
            blocks["doc_to_query"] = [block(documents[0], all_queries)]
        if "doc_to_doc" in self.directions:
            blocks["doc_to_doc"] = [block(documents[0], rows) for rows in all_documents]
        if self.partition_mode == "joint":
            positives = 1 + ("doc_to_query" in self.directions)
            return _loss([*itertools.chain(*blocks.values())], positive, positives)
        losses = [_loss(of_direction, positive) for of_direction in blocks.values()]
        return torch.stack(losses).mean()

    def _harder(self, values: Tensor) -> Tensor:
        """Logits, or their log-sum-exp, at scale + strength with the gradient at scale: the penalty has none."""
        part = values * (self.scale / (self.scale + self.hardness_strength))
        # Of a single row nothing is left but -inf.
        return part + torch.where(values == -math.inf, 0.0, values - part).detach()


def _loss(blocks: list[Tensor], positive: Tensor, positives: int = 1) -> Tensor:
    """The mean negative log-probability of positives that a softmax counts so many times beside the blocks."""
    rest = torch.stack(blocks).logsumexp(0) - positive
    return torch.logaddexp(rest, torch.full_like(rest, math.log(positives))).mean()


_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.info(message)
