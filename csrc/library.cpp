// Schemas of the custom operators. Kernels are registered beside their code, derivatives and fake kernels in Python
// (eeg_gan/ops), so that this library holds no Python and needs no symbol that torch 2.11 lacks.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(eeg_gan, m) {
  m.def("affine_warp(Tensor x, Tensor matrix) -> Tensor");
  m.def("affine_warp_adjoint(Tensor grad, Tensor matrix) -> Tensor");
}
