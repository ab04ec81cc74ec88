"""Computations of tests/distributed's processes; each saves its worst differences as ``<rank>.pt``."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from cmx_fast import distributed, ops
from cmx_fast.benchmarks.peers import packages
from cmx_fast.distributed.exchange import Exchange
from cmx_fast.losses import ClipLoss, NTXentLoss, SigLipLoss
from cmx_fast.train.cached_step import CachedContrastiveStep

DIM, SCALE = 12, 5.0


def sizes(world: int) -> list[int]:
    """Rows of the processes: unequal, and the last has none where there are three."""
    return [7, 3, 0, 5][:world] if world > 2 else [7, 3][:world]


def info_nce_cases() -> Iterator[dict[str, Any]]:
    base = {"bank": 0, "target": None}
    for similarity, symmetric, within in itertools.product(
        ("dot", "l2", "sql2"), (True, False), (False, True)
    ):
        yield base | {"similarity": similarity, "symmetric": symmetric, "within": within}
    for in_batch, within, symmetric in itertools.product((True, False), (True, False), (True, False)):
        yield base | {"bank": 2, "in_batch": in_batch, "within": within, "symmetric": symmetric}
    for reduction in ("sum", "none", "mean"):
        yield base | {"reduction": reduction, "normalize": True}
    yield base | {"label_smoothing": 0.1, "within": True, "bank": 1}
    yield base | {"label_smoothing": 0.2, "symmetric": False, "similarity": "l2"}
    yield base | {"target": "permutation"}
    yield base | {"target": "shared", "symmetric": False}
    yield base | {"keys": 4, "symmetric": False}
    for scale in (300.0, 2.0**40, 2.0**100):
        yield base | {"scale": scale, "within": True, "bank": 1}


def dense_cases() -> Iterator[dict[str, Any]]:
    for pool, masked in itertools.product(("max_mean", "sum_max", "max", "mean"), (False, True)):
        yield {"pool": pool, "masked": masked, "heads": 1 if pool == "mean" else 2}
    yield {"reduction": "none", "normalize": True}
    yield {"reduction": "sum", "symmetric": False, "uneven": True}
    yield {"uneven": True, "masked": True, "pool": "mean_max"}
    yield {"impl": "reference", "normalize": True}


def supcon_cases() -> Iterator[dict[str, Any]]:
    for reduction, ref, classes in itertools.product(
        ("mean", "mean_nonzero", "sum", "none"), (False, True), (4, 40)
    ):
        yield {"reduction": reduction, "ref": ref, "classes": classes}
    yield {"normalize": True, "ref": True, "classes": 3}
    yield {"normalize": True, "ref": False, "classes": 3}
    for scale, ref, classes in itertools.product((300.0, 2.0**40, 2.0**100), (False, True), (4, 40)):
        yield {"scale": scale, "ref": ref, "classes": classes}


def sigmoid_cases() -> Iterator[dict[str, Any]]:
    for reduction, ids, normalize in itertools.product(("mean", "sum", "none"), (False, True), (False, True)):
        yield {"reduction": reduction, "ids": ids, "normalize": normalize}
    for impl, ids in itertools.product(("reference", "cpp"), (False, True)):
        yield {"impl": impl, "ids": ids, "scale": 300.0}


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def difference(actual: Tensor, truth: Tensor, whole: float) -> float:
    """Largest difference, relative to ``whole``, the largest entry of the whole batch's."""
    return float((actual - truth).abs().max()) / max(whole, 1e-12) if actual.numel() else 0.0


class Compared:
    """Runs one case both ways and keeps the worst differences."""

    def __init__(self, dtype: torch.dtype, exchange: str):
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.dtype, self.exchange = dtype, exchange
        self.worst: dict[str, float] = {}

    def cut(self, tensor: Tensor, counts: list[int]) -> Tensor:
        return tensor.split(counts)[self.rank].clone()

    def compare(self, name: str, losses: tuple[Tensor, Tensor], pairs: list[tuple], scales: tuple) -> None:
        loss, whole_loss = losses
        loss, whole_loss = loss.detach(), whole_loss.detach()
        worst = difference(loss, whole_loss, float(whole_loss.abs().sum()) / max(1, whole_loss.numel()))
        for mine, whole, counts in pairs:
            truth = self.cut(whole.grad, counts)
            worst = max(worst, difference(mine.grad, truth, float(whole.grad.abs().max())))
        share, whole_share = scales
        total = share.grad.clone()
        dist.all_reduce(total)
        worst = max(worst, difference(total, whole_share.grad, float(whole_share.grad.abs())))
        self.worst[name] = worst

    def losses_after_backward(
        self, actual: Tensor, truth: Tensor, counts: list[int], averaged: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The losses, those of the whole batch cut to the own rows if they are one per row, each with a weight of its
        own backward. Gradients of the leaves in ``averaged`` are divided by the processes.
        """
        losses = actual, truth
        if truth.dim():
            pull = torch.linspace(1, 2, len(truth), dtype=truth.dtype)
            losses = actual, self.cut(truth.detach(), counts)
            actual, truth = (actual * self.cut(pull, counts)).sum(), (truth * pull).sum()
        truth.backward()
        actual.backward()
        for leaf in averaged:
            leaf.grad = None if leaf.grad is None else leaf.grad / self.world
        return losses

    def info_nce(self, options: dict[str, Any], averaged: bool) -> None:
        name = f"info_nce {options} {averaged}"
        options = dict(options)
        generator = torch.Generator().manual_seed(1)
        counts = sizes(self.world)
        more = options.pop("keys", 0)
        key_counts = [n + more for n in counts]

        def draw(rows: int) -> Tensor:
            return torch.randn(rows, DIM, generator=generator, dtype=torch.float64).to(self.dtype) / DIM**0.5

        query, key = draw(sum(counts)), draw(sum(key_counts))
        bank = [draw(9) for _ in range(options.pop("bank"))]
        target, kind = None, options.pop("target")
        if kind == "permutation":
            target = [torch.randperm(n, generator=generator) for n in counts]
        elif kind == "shared":
            target = [
                torch.randint(n, (n,), generator=generator) if n else torch.empty(0).long() for n in counts
            ]
        starts = torch.tensor([0, *key_counts]).cumsum(0)
        joined = None
        if target is not None or more:
            local = target or [torch.arange(n) for n in counts]
            joined = torch.cat([t + s for t, s in zip(local, starts)])
        whole = leaves(query, key, torch.tensor(options.pop("scale", SCALE), dtype=self.dtype))
        truth = ops.info_nce(*whole, bank=bank, target=joined, **options)
        mine = leaves(self.cut(query, counts), self.cut(key, key_counts), whole[2].detach())
        actual = distributed.info_nce(
            *mine, bank=bank, target=None if target is None else target[self.rank], exchange=self.exchange,
            averaged=averaged, **options,
        )  # fmt: skip
        losses = self.losses_after_backward(actual, truth, counts, mine if averaged else ())
        pairs = [(mine[0], whole[0], counts), (mine[1], whole[1], key_counts)]
        self.compare(name, losses, pairs, (mine[2], whole[2]))

    def dense_contrastive(self, options: dict[str, Any], averaged: bool) -> None:
        name = f"dense_contrastive {options} {averaged}"
        options = dict(options)
        generator = torch.Generator().manual_seed(4)
        counts, uneven, masked = sizes(self.world), options.pop("uneven", False), options.pop("masked", False)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(self.dtype) / 2

        query, key = draw(sum(counts), DIM, 3, 2), draw(sum(counts), 7, DIM)
        real = torch.rand(sum(counts), 7, generator=generator) > 0.4
        real[:, 0] = True
        if uneven:  # each process pads to its own longest
            masked = True
            lengths = torch.tensor([3 + rank for rank, n in enumerate(counts) for _ in range(n)])
            real &= torch.arange(7) < lengths[:, None]
        # Above the best scale of unpaired items, at which its gradient would be a difference of equals.
        whole = leaves(query, key, torch.tensor(4 * SCALE, dtype=self.dtype))
        truth = ops.dense_contrastive(*whole, key_mask=real if masked else None, **options)
        mine = leaves(self.cut(query, counts), self.cut(key, counts), whole[2].detach())
        held = 3 + self.rank if uneven else 7
        actual = distributed.dense_contrastive(
            mine[0], mine[1][:, :held], mine[2], key_mask=self.cut(real, counts)[:, :held] if masked else None,
            exchange=self.exchange, averaged=averaged, **options,
        )  # fmt: skip
        losses = self.losses_after_backward(actual, truth, counts, mine if averaged else ())
        pairs = [(mine[0], whole[0], counts), (mine[1], whole[1], counts)]
        self.compare(name, losses, pairs, (mine[2], whole[2]))

    def supcon(self, options: dict[str, Any], averaged: bool) -> None:
        name = f"supcon {options} {averaged}"
        options = dict(options)
        generator = torch.Generator().manual_seed(2)
        counts, classes, ref = sizes(self.world), options.pop("classes"), options.pop("ref")
        ref_counts = [n + 2 for n in reversed(counts)]

        def draw(rows: int) -> tuple[Tensor, Tensor]:
            x = torch.randn(rows, DIM, generator=generator, dtype=torch.float64).to(self.dtype) / DIM**0.5
            return x, torch.randint(classes, (rows,), generator=generator)

        (x, labels), (r, ref_labels) = draw(sum(counts)), draw(sum(ref_counts))
        labels[-1], labels[0] = 99, labels[1]
        if classes == 40 and len(labels) > 2:
            labels[-2] = labels[0]  # a pair across processes
        whole = leaves(x, r, torch.tensor(options.pop("scale", SCALE), dtype=self.dtype))
        mine = leaves(self.cut(x, counts), self.cut(r, ref_counts), whole[2].detach())
        of_whole = {"ref_features": whole[1], "ref_labels": ref_labels} if ref else {}
        of_mine = {"ref_features": mine[1], "ref_labels": self.cut(ref_labels, ref_counts)} if ref else {}
        truth = ops.supcon(whole[0], labels, whole[2], **of_whole, **options)
        actual = distributed.supcon(
            mine[0], self.cut(labels, counts), mine[2], **of_mine, exchange=self.exchange, averaged=averaged,
            **options,
        )  # fmt: skip
        losses = self.losses_after_backward(actual, truth, counts, mine if averaged else ())
        pairs = [(mine[0], whole[0], counts)] + ([(mine[1], whole[1], ref_counts)] if ref else [])
        self.compare(name, losses, pairs, (mine[2], whole[2]))

    def sigmoid_contrastive(self, options: dict[str, Any], averaged: bool) -> None:
        name = f"sigmoid_contrastive {options} {averaged}"
        options = dict(options)
        generator = torch.Generator().manual_seed(6)
        counts = sizes(self.world)
        key_counts = [n + 2 for n in counts]

        def draw(rows: int) -> Tensor:
            return torch.randn(rows, DIM, generator=generator, dtype=torch.float64).to(self.dtype) / DIM**0.5

        query, key = draw(sum(counts)), draw(sum(key_counts))
        of_query, of_key = (torch.randint(4, (len(x),), generator=generator) for x in (query, key))
        of_whole: dict[str, Any] = {"query_ids": of_query, "key_ids": of_key}
        of_mine: dict[str, Any] = {
            "query_ids": self.cut(of_query, counts), "key_ids": self.cut(of_key, key_counts),
        }  # fmt: skip
        if not options.pop("ids"):
            # The diagonals of the processes' own blocks.
            places = torch.cat([100 * i + torch.arange(n) for i, n in enumerate(counts)])
            of_keys = torch.cat([100 * i + torch.arange(m) for i, m in enumerate(key_counts)])
            of_whole, of_mine = {"query_ids": places, "key_ids": of_keys}, {}
        numbers = options.pop("scale", SCALE), -2.0
        whole = leaves(query, key, *(torch.tensor(x, dtype=self.dtype) for x in numbers))
        mine = leaves(self.cut(query, counts), self.cut(key, key_counts), *(x.detach() for x in whole[2:]))
        truth = ops.sigmoid_contrastive(*whole, **of_whole, **options)
        actual = distributed.sigmoid_contrastive(
            *mine, **of_mine, exchange=self.exchange, averaged=averaged, **options
        )
        losses = self.losses_after_backward(actual, truth, counts, mine if averaged else ())
        pairs = [(mine[0], whole[0], counts), (mine[1], whole[1], key_counts)]
        self.compare(name, losses, pairs, (mine[2], whole[2]))
        self.compare(f"{name} bias", losses, [], (mine[3], whole[3]))

    def siglip_loss(self) -> None:
        """The mean over the processes is OpenCLIP's loss, and so are the gradients once they are averaged."""
        image, text = torch.randn(
            2, 4, DIM, generator=torch.Generator().manual_seed(self.rank), dtype=self.dtype
        )
        for how in ("bidir", "shift", "reduce", "gather"):
            found = []
            theirs = type(packages.open_clip_loss("SigLipLoss"))
            for cls in (SigLipLoss, theirs):
                loss = cls(rank=self.rank, world_size=self.world, dist_impl=how)
                mine = leaves(image, text, *(torch.tensor(x, dtype=self.dtype) for x in (SCALE, -2.0)))
                value = loss(*mine)
                value.backward()
                results = [value.detach().clone(), *(leaf.grad for leaf in mine)]
                for shared in (results[0], *results[3:]):
                    dist.all_reduce(shared)
                found.append(results)
            self.worst[f"SigLipLoss {how}"] = max(
                difference(a, b, float(b.abs().max())) for a, b in zip(*found, strict=True)
            )

    def clip_loss(self) -> None:
        generator = torch.Generator().manual_seed(self.rank)
        image, text = torch.randn(2, 4 + self.rank, DIM, generator=generator, dtype=self.dtype)
        for gathered in (True, False):
            module = ClipLoss(
                gather_with_grad=gathered, rank=self.rank, world_size=self.world, exchange=self.exchange
            )
            results = []
            for loss in (
                module,
                lambda *x: distributed.info_nce(*x, exchange=self.exchange, averaged=gathered),  # noqa: B023
            ):
                mine = leaves(image, text)
                out = loss(*mine, SCALE)
                out.backward()
                results.append([out.detach(), *(leaf.grad for leaf in mine)])
            same = all(a.equal(b) for a, b in zip(*results))
            self.worst[f"ClipLoss gather_with_grad={gathered}"] = float(not same)

    def clip_logits(self) -> None:
        """Cross-entropy of ``get_logits`` has the loss and gradients that the loss itself has."""
        image, text = torch.randn(
            2, 4, DIM, generator=torch.Generator().manual_seed(self.rank), dtype=self.dtype
        )
        for local, gathered in ((False, False), (False, True), (True, True)):
            module = ClipLoss(local, gathered, rank=self.rank, world_size=self.world, exchange=self.exchange)
            mine, dense = leaves(image, text), leaves(image, text)
            truth = module(*mine, SCALE)
            logits = module.get_logits(*dense, SCALE)
            labels = module.get_ground_truth(image.device, len(logits[0]))
            actual = sum(F.cross_entropy(side, labels) for side in logits) / 2
            truth.backward()
            actual.backward()
            actual = actual.detach()
            if local:  # of the own rows alone; the mean over the processes is the whole batch's
                dist.all_reduce(actual)
                actual /= self.world
            pairs = [(actual, truth.detach()), *((a.grad, b.grad) for a, b in zip(dense, mine))]
            self.worst[f"get_logits local={local} gathered={gathered}"] = max(
                difference(a, b, float(b.abs().max())) for a, b in pairs
            )
        uneven = image[: 1 + self.rank % 2]
        try:
            ClipLoss(rank=self.rank, world_size=self.world).get_logits(uneven, uneven, SCALE)
            self.worst["get_logits refuses"] = 1.0
        except ValueError as error:
            self.worst["get_logits refuses"] = float("as many rows in every process" not in str(error))

    def ntxent(self) -> None:
        """lightly's gather_distributed: candidates of all processes, and a bank that is the same everywhere."""
        counts = sizes(self.world)
        views = torch.randn(2, sum(counts), DIM, generator=torch.Generator().manual_seed(5), dtype=self.dtype)
        whole, mine = leaves(*views), leaves(*(self.cut(view, counts) for view in views))
        truth, actual = NTXentLoss(0.3)(*whole), NTXentLoss(0.3, gather_distributed=True)(*mine)
        truth.backward()
        actual.backward()
        for leaf in mine:
            leaf.grad /= self.world
        differences = [difference(actual.detach(), truth.detach(), float(truth))]
        for own, all_of_it in zip(mine, whole):
            gradient = self.cut(all_of_it.grad, counts)
            differences.append(difference(own.grad, gradient, float(all_of_it.grad.abs().max())))
        self.worst["NTXentLoss gather_distributed"] = max(differences)
        loss = NTXentLoss(0.3, memory_bank_size=(sum(counts) + 2, DIM), gather_distributed=True)
        loss(*mine)
        keys = F.normalize(views[1], dim=1).float()
        self.worst["NTXentLoss bank"] = difference(loss.memory_bank.rows[2:], keys, 1.0)

    def kmeans(self, metric: str) -> None:
        generator = torch.Generator().manual_seed(3)
        counts = sizes(self.world)
        x = torch.randn(sum(counts), DIM, generator=generator, dtype=torch.float64).to(self.dtype)
        centroids = x[:3].clone()
        truth = ops.kmeans_step(x, centroids, metric=metric)
        actual = distributed.kmeans_step(self.cut(x, counts), centroids, metric=metric)
        exact = bool(actual[0].equal(self.cut(truth[0], counts)) and actual[2].equal(truth[2]))
        sums = difference(actual[1], truth[1], float(truth[1].abs().max()))
        self.worst[f"kmeans_step {metric}"] = max(
            sums, difference(actual[3], truth[3], float(truth[3])), float(not exact)
        )


def main(rank: int, world: int, folder: str) -> None:
    join_group(rank, world, folder)
    results = {}
    for dtype, exchange in itertools.product((torch.float64, torch.float32), ("ring", "gather")):
        compared = Compared(dtype, exchange)
        for index, options in enumerate(info_nce_cases()):
            compared.info_nce(options, averaged=index % 2 == 0)
        for index, options in enumerate(dense_cases()):
            compared.dense_contrastive(options, averaged=index % 2 == 0)
        for index, options in enumerate(supcon_cases()):
            compared.supcon(options, averaged=index % 2 == 1)
        for index, options in enumerate(sigmoid_cases()):
            compared.sigmoid_contrastive(options, averaged=index % 2 == 1)
        if importlib.util.find_spec("open_clip"):
            compared.siglip_loss()
        for metric in ("l2", "cosine"):
            compared.kmeans(metric)
        compared.clip_loss()
        compared.clip_logits()
        compared.ntxent()
        results[str(dtype).removeprefix("torch."), exchange] = compared.worst
    torch.save(results, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def count_traffic(rank: int, world: int, folder: str) -> None:
    """Bytes and messages that the process sends in a step of the ring, (40, 24) float32 queries and keys."""
    join_group(rank, world, folder)
    sent = []
    exchange = dist.batch_isend_irecv

    def counting(operations):
        sent.extend(o.tensor.numel() * o.tensor.element_size() for o in operations if o.op is dist.isend)
        return exchange(operations)

    dist.batch_isend_irecv = counting
    query, key = (torch.randn(40, 24, requires_grad=True) for _ in "qk")
    distributed.info_nce(query, key).backward()
    torch.save((sum(sent), len(sent)), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def join_group(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    torch.set_num_threads(1)


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.ModuleDict(
        {"image": torch.nn.Linear(10, DIM), "text": torch.nn.Linear(8, DIM), "scale": _Scale()}
    )


class _Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log = torch.nn.Parameter(torch.tensor(1.0))


class _Loss(torch.nn.Module):
    """A model and its loss as one module, as DistributedDataParallel wants it; also a SupCon of the images."""

    def __init__(self, exchange: str):
        super().__init__()
        self.parts, self.exchange = _model(), exchange

    def forward(self, images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
        image, text = self.parts["image"](images), self.parts["text"](texts)
        scale = self.parts["scale"].log.exp()
        options = {"exchange": self.exchange, "normalize": True}
        return distributed.info_nce(image, text, scale, **options) + distributed.supcon(
            image, labels, scale, **options
        )


def _train(module: torch.nn.Module, parts: torch.nn.Module, cut) -> dict[str, Any]:
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    generator = torch.Generator().manual_seed(5)
    losses = []
    for _ in range(6):
        batch = torch.randn(12, 10, generator=generator), torch.randn(12, 8, generator=generator)
        labels = torch.randint(4, (12,), generator=generator)
        loss = module(*(cut(tensor) for tensor in (*batch, labels)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return {"losses": losses, "weights": {name: w.detach().clone() for name, w in parts.named_parameters()}}


def train_on_everything() -> dict[str, Any]:
    module = _Loss("ring")
    return _train(module, module.parts, lambda tensor: tensor)


def _train_in_parallel(exchange: str, rank: int, world: int, folder: str) -> None:
    join_group(rank, world, folder)
    module = _Loss(exchange)
    parallel = torch.nn.parallel.DistributedDataParallel(module)
    actual = _train(parallel, module.parts, lambda tensor: tensor.split([3, 5, 4])[rank])
    torch.save(actual, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def cached_in_parallel(rank: int, world: int, folder: str) -> None:
    """Gradients of a cached step under DistributedDataParallel, and of one process's step on everything."""
    join_group(rank, world, folder)
    generator = torch.Generator().manual_seed(4)
    image, text = torch.randn(21, 10, generator=generator), torch.randn(21, 8, generator=generator)
    whole, parts = _model(), _model()
    ops.info_nce(whole["image"](image), whole["text"](text), 3.0, normalize=True).backward()
    exchanges = []

    def counting(state, bucket):
        exchanges.append(bucket.index())
        return default_hooks.allreduce_hook(None, bucket)

    encoders = [torch.nn.parallel.DistributedDataParallel(parts[name]) for name in ("image", "text")]
    for encoder in encoders:
        encoder.register_comm_hook(None, counting)
    step = CachedContrastiveStep(
        encoders, functools.partial(distributed.info_nce, logit_scale=3.0, normalize=True), 4
    )
    step(*(tensor.split([12, 9])[rank] for tensor in (image, text)))
    names = ("image", "text")
    actual = {
        "gradients": [p.grad for name in names for p in parts[name].parameters()],
        "whole": [p.grad for name in names for p in whole[name].parameters()],
        "exchanges": len(exchanges),
    }
    torch.save(actual, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def held_rows(rank: int, world: int, folder: str) -> None:
    """By exchange, of how many processes' rows memory is held at once over all rounds, and whether they were right."""
    join_group(rank, world, folder)
    actual = {}
    for how in ("ring", "gather"):
        exchange = Exchange(None, how)
        mine = torch.full((5 + rank, 3), float(rank))
        memory, right = set(), []
        for owner, theirs in exchange.rounds({0: mine}, exchange.counts(mine)):
            right.append(theirs[0].shape == (5 + owner, 3) and bool((theirs[0] == owner).all()))
            if owner != rank:
                memory.add(theirs[0].data_ptr())
        actual[how] = len(memory), all(right), len(right)
    torch.save(actual, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


train_in_parallel = {how: functools.partial(_train_in_parallel, how) for how in ("ring", "gather")}
