// cmx_fast._host: what is not a tensor operator. pybind11, without torch, so that it answers when torch does not load.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>

#include "build_info.h"
#include "linear_assignment.h"

namespace py = pybind11;

namespace {

using Costs = py::array_t<double, py::array::c_style | py::array::forcecast>;

py::tuple linear_assignment(const Costs& costs, int threads) {
  const py::ssize_t items = costs.shape(0), rows = costs.shape(1), columns = costs.shape(2);
  py::array_t<int64_t> row({items, std::min(rows, columns)}), column({items, std::min(rows, columns)});
  py::array_t<bool> solved(items);
  const double* data = costs.data();
  int64_t *row_data = row.mutable_data(), *column_data = column.mutable_data();
  bool* solved_data = solved.mutable_data();
  {
    const py::gil_scoped_release release;
    cmx_fast::host::linear_assignment(data, items, rows, columns, threads, row_data, column_data, solved_data);
  }
  return py::make_tuple(row, column, solved);
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Build information and host-only helpers of cmx_fast.";
  m.def("build_info", &cmx_fast::host::build_info,
        "dict[str, str]: compiler, flags, isa, cuda, cuda_arch_list, torch, torch_abi_target of this build.");
  m.def("cpu_features", &cmx_fast::host::cpu_features,
        "dict[str, bool]: the instruction sets the kernels can use that this processor offers.");
  m.def("linear_assignment", &linear_assignment, py::arg("costs"), py::arg("threads"),
        "(rows, columns, solved) of float64 costs (items, R, C): the pairs (items, min(R, C)) at the least total cost, "
        "and which items have one of finite cost. Runs without the interpreter's lock.");
}
