"""Brings the rows of all processes together: gathered at once, or handed round a ring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from cmx_fast.ops._implementations import transformed

#: "ring": a process holds its own rows and at most two others', received while it computes. "gather": one collective,
#: then all rows are there.
EXCHANGES = ("ring", "gather")


class Exchange:
    """Hands every process's tensors to every process.

    Args:
        group: a ``torch.distributed`` process group; None: the default one, or this process alone where there is none.
        how: one of :data:`EXCHANGES`.
    """

    def __init__(self, group: dist.ProcessGroup | None, how: str):
        if how not in EXCHANGES:
            raise ValueError(f"exchange must be one of {', '.join(map(repr, EXCHANGES))}; got {how!r}")
        there = dist.is_available() and dist.is_initialized()
        self.group, self.how = group, how
        self.rank = dist.get_rank(group) if there else 0
        self.size = dist.get_world_size(group) if there else 1
        if self.rank < 0:
            raise ValueError("group must be one that this process belongs to")
        if self.size > 1 and transformed():
            raise NotImplementedError(
                "torch.func's transforms and forward-mode derivatives do not reach other processes' rows; use "
                "torch.autograd, or cmx_fast.ops with impl='reference' on rows that are all in this process"
            )

    def counts(self, *tensors: Tensor) -> list[list[int]]:
        """The lengths of every process's tensors; one wait for the device where there are several processes."""
        lengths = [len(tensor) for tensor in tensors]
        if self.size == 1:
            return [lengths]
        own = torch.tensor(lengths, device=tensors[0].device)
        everyone = own.new_empty(self.size * len(own))
        dist.all_gather_into_tensor(everyone, own, group=self.group)
        return everyone.view(self.size, -1).tolist()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, a new tensor without gradient."""
        total = tensor.detach().clone()
        if self.size > 1:
            dist.all_reduce(total, group=self.group)
        return total

    def rounds(
        self, tensors: Mapping[int, Tensor], counts: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, dict[int, Tensor]]]:
        """Yield (process, its tensors) for every process, the own one first.

        Tensors of the processes agree in all but their lengths: tensor i of a process has ``counts[process][i]`` rows.
        Nothing is sent where there are no tensors. The yielded tensors may be overwritten two rounds later.
        """
        own = {index: tensor.detach().contiguous() for index, tensor in tensors.items()}
        if not own:
            return
        if self.size == 1:
            yield 0, own
        elif self.how == "gather":
            yield from self._gathered(own, counts)
        else:
            yield from self._ring(own, counts)

    def _gathered(
        self, own: dict[int, Tensor], counts: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, dict[int, Tensor]]]:
        everyone = {}
        for index, tensor in own.items():
            longest = max(count[index] for count in counts)
            padded = tensor.new_zeros(longest, *tensor.shape[1:])
            padded[: len(tensor)] = tensor
            gathered = tensor.new_empty(self.size * longest, *tensor.shape[1:])
            dist.all_gather_into_tensor(gathered, padded, group=self.group)
            everyone[index] = gathered.view(self.size, longest, *tensor.shape[1:])
        for step in range(self.size):
            rank = (self.rank - step) % self.size
            yield rank, {index: tensor[rank, : counts[rank][index]] for index, tensor in everyone.items()}

    def _ring(
        self, own: dict[int, Tensor], counts: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, dict[int, Tensor]]]:
        following, previous = (self._global((self.rank + step) % self.size) for step in (1, -1))
        longest = {i: max(count[i] for count in counts) for i in own}
        # Two sets of rows that take turns, one to be used and sent on, one to be received.
        turns = [
            {i: t.new_empty(longest[i], *t.shape[1:]) for i, t in own.items()}
            for _ in range(min(2, self.size - 1))
        ]
        held = own
        for step in range(self.size):
            rank = (self.rank - step) % self.size
            transfers: list[dist.Work] = []
            received: dict[int, Tensor] = {}
            if step + 1 < self.size:
                coming = counts[(rank - 1) % self.size]
                received = {i: t[: coming[i]] for i, t in turns[step % len(turns)].items()}
                sends = [(dist.isend, held[i], following, i) for i in own]
                receives = [(dist.irecv, received[i], previous, i) for i in own]
                both = [
                    dist.P2POp(call, tensor, peer, self.group, tag)
                    for call, tensor, peer, tag in [*sends, *receives]
                    if tensor.numel()
                ]
                transfers = dist.batch_isend_irecv(both) if both else []
            yield rank, held
            for transfer in transfers:
                transfer.wait()
            held = received

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


def all_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows (N, ...) of all processes, in their order, without gradient; N may differ between them.

    It is for rows that all must hold alike, such as a bank of keys.
    """
    exchange = Exchange(group, "gather")
    everyone = dict(exchange.rounds({0: rows}, exchange.counts(rows)))
    return torch.cat([everyone[rank][0] for rank in range(exchange.size)])


def whole_batch(local: Tensor, exchange: Exchange, averaged: bool) -> Tensor:
    """The sum of the processes' numbers, whose gradient reaches this process's alone.

    ``averaged``: that gradient is multiplied by the number of processes, which averaging over them undoes.
    """
    return _pulling(exchange.sum(local), local, exchange, averaged)


def own_rows(losses: Tensor, exchange: Exchange, averaged: bool) -> Tensor:
    """This process's losses, with the gradients of :func:`whole_batch`."""
    return _pulling(losses.detach(), losses, exchange, averaged)


def _pulling(value: Tensor, local: Tensor, exchange: Exchange, averaged: bool) -> Tensor:
    """The value with the gradient of ``local``, times the number of processes where it will be averaged."""
    pulled = local * exchange.size if averaged else local
    return pulled + (value - pulled).detach()


def chunks(x: Tensor) -> Iterator[slice]:
    """Slices of rows of 16 MB in float64, so that float64 copies stay small beside the rows."""
    rows = max(1, 2**21 // max(1, x.shape[1]))
    for begin in range(0, len(x), rows):
        yield slice(begin, begin + rows)
