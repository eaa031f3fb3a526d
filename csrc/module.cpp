// The Python module `fastguide._C`: importing it loads the ops, and it says what was built. In plain
// C, as pybind11 would take longer to compile than any kernel.

#include <Python.h>
#include <torch/version.h>

#include "cpu/clones.h"

#if defined(FASTGUIDE_CUDA)
#define FASTGUIDE_CUDA_VERSION FASTGUIDE_CUDA
#else
#define FASTGUIDE_CUDA_VERSION nullptr  // Py_BuildValue makes None of it
#endif
#if defined(_OPENMP)
#define FASTGUIDE_OPENMP Py_True
#else
#define FASTGUIDE_OPENMP Py_False
#endif
#if defined(FASTGUIDE_LEVEL)
#define FASTGUIDE_HAS_LEVELS Py_True
#else
#define FASTGUIDE_HAS_LEVELS Py_False
#endif

static PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:s,s:z,s:O,s:O}", "torch", TORCH_VERSION, "compiler", __VERSION__,
                       "cuda", FASTGUIDE_CUDA_VERSION, "openmp", FASTGUIDE_OPENMP, "levels",
                       FASTGUIDE_HAS_LEVELS);
}

static PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "build_info()\n--\n\nVersions and features that the extension was built with."},
    {nullptr, nullptr, 0, nullptr}};

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "fastguide._C",
                             "Compiled kernels of fastguide; the ops are registered under "
                             "torch.ops.fastguide.",
                             -1, methods};

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
