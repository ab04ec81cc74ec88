// cmx_fast._host: what is not a tensor operator. It does not need torch, so that it answers when torch does not load.
//
// Python's limited API, so that one file serves every Python from 3.10 on. pybind11 binds one Python version at a time,
// and nanobind's stable ABI begins with 3.12; two functions without arguments need neither.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "build_info.h"

namespace {

PyObject* object(const std::string& value) { return PyUnicode_FromString(value.c_str()); }
PyObject* object(bool value) { return PyBool_FromLong(value); }

// A new dict of a map, or null with Python's error set.
template <class Map>
PyObject* dict(const Map& map) {
  PyObject* const result = PyDict_New();
  for (const auto& [name, value] : map) {
    PyObject* const item = result ? object(value) : nullptr;
    const bool stored = item && PyDict_SetItemString(result, name.c_str(), item) == 0;
    Py_XDECREF(item);
    if (!stored) {
      Py_XDECREF(result);
      return nullptr;
    }
  }
  return result;
}

PyObject* build_info(PyObject*, PyObject*) { return dict(cmx_fast::host::build_info()); }
PyObject* cpu_features(PyObject*, PyObject*) { return dict(cmx_fast::host::cpu_features()); }

PyMethodDef functions[] = {
    {"build_info", build_info, METH_NOARGS,
     "dict[str, str]: compiler, flags, isa, cuda, cuda_arch_list, torch, torch_abi_target of this build."},
    {"cpu_features", cpu_features, METH_NOARGS,
     "dict[str, bool]: the instruction sets the kernels can use that this processor offers."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "_host",
    "Build information and processor features of cmx_fast.",
    0,
    functions,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__host() { return PyModule_Create(&definition); }
