// Labels of any value as classes 0, 1, ... that rows and columns share.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace cmx {

struct Classes {
  std::vector<int64_t> of_row, of_column;
  int64_t count;

  Classes(const int64_t* rows, int64_t n, const int64_t* columns, int64_t m) {
    std::unordered_map<int64_t, int64_t> index;
    const auto number = [&](const int64_t* labels, int64_t size) {
      std::vector<int64_t> classes(size);
      for (int64_t i = 0; i < size; ++i) classes[i] = index.try_emplace(labels[i], index.size()).first->second;
      return classes;
    };
    of_row = number(rows, n);
    of_column = number(columns, m);
    count = index.size();
  }
};

}  // namespace cmx
