#pragma once

#include <cstdint>

namespace cmx_fast::host {

// Assigns min(rows, columns) pairs at the least total cost in each of `items` cost matrices (rows, columns).
// row, column (items, min(rows, columns)): the pairs in the order of their row. solved[i]: true if item i has an
// assignment of finite cost. Costs are not NaN and not -infinity.
void linear_assignment(const double* costs, int64_t items, int64_t rows, int64_t columns, int threads, int64_t* row,
                       int64_t* column, bool* solved);

}  // namespace cmx_fast::host
