// Schemas of the custom operators. Kernels are registered beside their code, derivatives and fake kernels in Python
// (eeg_gan/ops), so that this library holds no Python and needs no symbol that torch 2.11 lacks.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(eeg_gan, m) {
  m.def("bias_act(Tensor x, Tensor? b, int dim, int act, float alpha, float gain, float clamp) -> Tensor");
  m.def(
      "bias_act_backward(Tensor dy, Tensor? ref, Tensor? b, int dim, int act, float alpha, float gain, float clamp, "
      "bool by_x, bool want_db) -> (Tensor, Tensor)");
  m.def(
      "bias_act_double_backward(Tensor? ddx, Tensor? ddb, Tensor dy, Tensor? ref, Tensor? b, int dim, int act, "
      "float alpha, float gain, float clamp, bool by_x, bool want_ref, bool want_b) -> (Tensor, Tensor, Tensor)");
  m.def(
      "upfirdn2d(Tensor x, Tensor f, int up_x, int up_y, int down_x, int down_y, int pad_x0, int pad_x1, int pad_y0, "
      "int pad_y1, bool flip, float gain) -> Tensor");
  m.def("affine_warp(Tensor x, Tensor matrix) -> Tensor");
  m.def("affine_warp_adjoint(Tensor grad, Tensor matrix) -> Tensor");
  m.def("conv3x3(Tensor x, Tensor weight) -> Tensor");
  m.def("conv3x3_weight(Tensor x, Tensor dy) -> Tensor");
}
