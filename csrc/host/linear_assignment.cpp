// The linear assignment problem by shortest augmenting paths (Jonker and Volgenant 1987; Crouse 2016 for rectangles).
//
// Rows are assigned one after the other; each takes a Dijkstra search over reduced costs, kept non-negative by prices
// of rows and columns, to the nearest free column. A thread owns a matrix. Exact in double, O(min(R, C)^2 max(R, C)) at
// worst; memory O(R + C) per thread.
#include "linear_assignment.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <thread>
#include <vector>

namespace cmx_fast::host {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One matrix with at most as many rows as columns, or the transpose of one with more.
class Solver {
 public:
  Solver(int64_t rows, int64_t columns)
      : n_(std::min(rows, columns)),
        m_(std::max(rows, columns)),
        row_step_(rows <= columns ? columns : 1),
        column_step_(rows <= columns ? 1 : columns),
        row_price_(n_),
        column_price_(m_),
        column_of_row_(n_),
        row_of_column_(m_),
        distance_(m_),
        previous_(m_),
        reached_(m_) {}

  bool solve(const double* costs) {
    costs_ = costs;
    std::fill(row_price_.begin(), row_price_.end(), 0);
    std::fill(column_price_.begin(), column_price_.end(), 0);
    std::fill(row_of_column_.begin(), row_of_column_.end(), -1);
    for (int64_t row = 0; row < n_; ++row)
      if (!augment(row)) return false;
    return true;
  }

  const std::vector<int64_t>& column_of_row() const { return column_of_row_; }
  const std::vector<int64_t>& row_of_column() const { return row_of_column_; }

 private:
  // Dijkstra over reduced costs from a free row to the nearest free column; the path's pairs change places.
  bool augment(int64_t start) {
    std::fill(distance_.begin(), distance_.end(), kInfinity);
    std::fill(reached_.begin(), reached_.end(), false);
    path_rows_.clear();
    int64_t row = start, free_column = -1;
    double least = 0;
    while (free_column < 0) {
      path_rows_.push_back(row);
      int64_t nearest = -1;
      double nearest_distance = kInfinity;
      const double* costs = costs_ + row * row_step_;
      for (int64_t j = 0; j < m_; ++j) {
        if (reached_[j]) continue;
        const double through = least + costs[j * column_step_] - row_price_[row] - column_price_[j];
        if (through < distance_[j]) distance_[j] = through, previous_[j] = row;
        // Among equals a free column ends the search.
        if (distance_[j] < nearest_distance || (distance_[j] == nearest_distance && row_of_column_[j] < 0))
          nearest_distance = distance_[j], nearest = j;
      }
      if (nearest_distance == kInfinity) return false;
      least = nearest_distance;
      reached_[nearest] = true;
      row = row_of_column_[nearest];
      if (row < 0) free_column = nearest;
    }
    row_price_[start] += least;
    for (const int64_t i : path_rows_)
      if (i != start) row_price_[i] += least - distance_[column_of_row_[i]];
    for (int64_t j = 0; j < m_; ++j)
      if (reached_[j]) column_price_[j] -= least - distance_[j];
    for (int64_t column = free_column;;) {
      const int64_t i = previous_[column];
      row_of_column_[column] = i;
      std::swap(column_of_row_[i], column);
      if (i == start) return true;
    }
  }

  const int64_t n_, m_, row_step_, column_step_;
  const double* costs_ = nullptr;
  std::vector<double> row_price_, column_price_;
  std::vector<int64_t> column_of_row_, row_of_column_;
  // The search's least reduced cost to each column, the row before it, and if that is final.
  std::vector<double> distance_;
  std::vector<int64_t> previous_, path_rows_;
  std::vector<char> reached_;
};

}  // namespace

void linear_assignment(const double* costs, int64_t items, int64_t rows, int64_t columns, int threads, int64_t* row,
                       int64_t* column, bool* solved) {
  const int64_t pairs = std::min(rows, columns);
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    Solver solver(rows, columns);
    for (int64_t item; (item = next.fetch_add(1)) < items;) {
      solved[item] = solver.solve(costs + item * rows * columns);
      if (!solved[item]) continue;
      int64_t *out_row = row + item * pairs, *out_column = column + item * pairs;
      for (int64_t i = 0, pair = 0; i < rows; ++i) {
        const int64_t j = rows <= columns ? solver.column_of_row()[i] : solver.row_of_column()[i];
        if (j < 0) continue;
        out_row[pair] = i;
        out_column[pair++] = j;
      }
    }
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < std::min<int64_t>(threads, items); ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
}

}  // namespace cmx_fast::host
