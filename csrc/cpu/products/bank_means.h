// Softmax sums over a bank together with the softmax-weighted mean of its rows: the gradient of queries that only a
// bank pushes away is that mean less the key, so the bank is read and multiplied once for both.
#pragma once

#include <vector>

#include "cpu/products/block.h"

namespace cmx {

// Adds a bank (block.y; similarity "dot", no mask) to the sums of the queries (block.x) and their weighted rows:
// weighted (n, d) holds sum of exp2(logit * log2(e) - shift) * row for the shift that is in `sums`.
template <class T>
void add_sums_and_rows(const Block<T>& block, const Logits<T>& logits, SoftmaxSum* sums, T* weighted);

}  // namespace cmx
