// Softmax sums over a bank together with the softmax-weighted mean of its rows: the gradient of queries that only a
// bank pushes away is that mean less the key, so the bank is read and multiplied once for both.
//
// Who owns what: a task owns some rows of the bank, 1440 or more, against all queries, and sums of its own, (n, d);
// tile by tile of 96 queries it makes the scores (96, rows), their maxima, sums, exponentials, and the product of these
// with its rows. The tasks' sums are then brought to the larger top in the order of the tasks. Why it is right: a sum
// and its weighted rows are scaled by the same factor, at most 1. Memory: the tasks' sums, some 32 MiB.
#pragma once

#include <vector>

#include "cpu/products/block.h"

namespace cmx {

// Adds a bank (block.y; similarity "dot", no mask) to the sums of the queries (block.x) and their weighted rows:
// weighted (n, d) holds sum of exp2(logit * log2(e) - shift) * row for the shift that is in `sums`.
template <class T>
void add_sums_and_rows(const Block<T>& block, const Logits<T>& logits, SoftmaxSum* sums, T* weighted);

}  // namespace cmx
