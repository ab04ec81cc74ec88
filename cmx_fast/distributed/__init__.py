"""The contrastive losses and the k-means step over all rows of a process group.

They give the results of :mod:`cmx_fast.ops` on the concatenated batch, of which each process holds its own part.
``all_rows`` gives every process the rows of all, such as a bank's new keys.

Where there are several processes, torch.compile leaves them out of its graphs and torch.export refuses them, since rows
travel while they are used. Neither torch.func's transforms nor forward-mode derivatives reach other processes' rows:
NotImplementedError.
"""

from cmx_fast.distributed.dense_contrastive import dense_contrastive
from cmx_fast.distributed.exchange import all_rows
from cmx_fast.distributed.info_nce import info_nce
from cmx_fast.distributed.kmeans import RowsOfAll, kmeans_step
from cmx_fast.distributed.sigmoid_contrastive import sigmoid_contrastive
from cmx_fast.distributed.supcon import supcon

__all__ = [
    "RowsOfAll",
    "all_rows",
    "dense_contrastive",
    "info_nce",
    "kmeans_step",
    "sigmoid_contrastive",
    "supcon",
]
