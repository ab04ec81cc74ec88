"""The linear assignment problem in NumPy: the same algorithm as the C++ solver's, a matrix after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def linear_assignment(
    costs: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Rows and columns (B, min(R, C)) of the cheapest pairs of costs (B, R, C), and a mask (B,) of the solvable items.

    An item without an assignment of finite cost is not solvable; its rows and columns are 0.
    """
    items, rows, columns = costs.shape
    pairs = min(rows, columns)
    row, column = np.zeros((items, pairs), np.int64), np.zeros((items, pairs), np.int64)
    solved = np.zeros(items, np.bool_)
    for i, cost in enumerate(costs):
        chosen = _columns_of_rows(cost if rows <= columns else cost.T)
        if chosen is None:
            continue
        solved[i] = True
        if rows <= columns:
            row[i], column[i] = np.arange(rows), chosen
        else:
            order = np.argsort(chosen)
            row[i], column[i] = chosen[order], order
    return row, column, solved


def _columns_of_rows(cost: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """The column of each row of a matrix with at most as many rows as columns; None where all would cost infinity."""
    n, m = cost.shape
    row_price, column_price = np.zeros(n), np.zeros(m)
    column_of_row, row_of_column = np.full(n, -1), np.full(m, -1)
    for start in range(n):
        # Dijkstra over reduced costs to the nearest free column.
        distance, previous, reached = np.full(m, np.inf), np.zeros(m, np.int64), np.zeros(m, np.bool_)
        row, least, visited = start, 0.0, [start]
        while True:
            through = least + cost[row] - row_price[row] - column_price
            shorter = ~reached & (through < distance)
            distance[shorter], previous[shorter] = through[shorter], row
            nearest = int(np.where(reached, np.inf, distance).argmin())
            if reached[nearest] or np.isinf(distance[nearest]):
                return None
            least, reached[nearest] = distance[nearest], True
            row = row_of_column[nearest]
            if row < 0:
                break
            visited.append(row)
        row_price[start] += least
        for i in visited[1:]:
            row_price[i] += least - distance[column_of_row[i]]
        column_price[reached] -= least - distance[reached]
        column = nearest
        while True:
            i = previous[column]
            row_of_column[column] = i
            column_of_row[i], column = column, column_of_row[i]
            if i == start:
                break
    return column_of_row
