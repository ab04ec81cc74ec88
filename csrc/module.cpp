// Importing cmx_fast._C runs the static initialisers of the operator files linked into it, and those register the
// operators with PyTorch's dispatcher. The Python module itself is therefore empty.
#include <Python.h>

namespace {
PyModuleDef module_definition = {PyModuleDef_HEAD_INIT,
                                 "_C",
                                 "Operators of cmx_fast (see torch.ops.cmx_fast).",
                                 -1,
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr};
}

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module_definition); }
