// CUDA kernels of the affine warp and of its adjoint; see affine_warp.h for the definition. Both only gather, so they
// are deterministic; their shapes, launches and memory depend on the shape of the images alone.
#include "affine_warp_adjoint.cuh"
#include "affine_warp_forward.cuh"

namespace eeg_gan {
namespace {

unsigned blocks(const WarpShape& s, int tile_x, int tile_y) {
  const int64_t tiles = int64_t{(s.w + tile_x - 1) / tile_x} * ((s.h + tile_y - 1) / tile_y);
  const int64_t units = s.n * s.c * tiles;
  return static_cast<unsigned>(units < 0x7fffffff ? units : 0x7fffffff);
}

template <class S, class T>
int forward(const WarpShape& s, const void* x, const void* matrix, void* y, void* stream) {
  const int bytes = (kFixed + kSourceMax<T>) * static_cast<int>(sizeof(T));
  EEG_GAN_LAUNCH((forward_kernel<S, T>), dim3(blocks(s, kTileX, kTileY)), dim3(kThreads), bytes,
                 static_cast<cudaStream_t>(stream), s, static_cast<const S*>(x), static_cast<const T*>(matrix),
                 static_cast<S*>(y));
  return cudaGetLastError();
}

template <class S, class T>
int adjoint(const WarpShape& s, const void* grad, const void* matrix, void* x, void* stream) {
  EEG_GAN_LAUNCH((adjoint_kernel<S, T>), dim3(blocks(s, kSide, kSide)), dim3(kThreads), 0,
                 static_cast<cudaStream_t>(stream), s, static_cast<const S*>(grad), static_cast<const T*>(matrix),
                 static_cast<S*>(x));
  return cudaGetLastError();
}

}  // namespace
}  // namespace eeg_gan

extern "C" int eeg_gan_affine_warp(const eeg_gan::WarpShape* shape, int dtype, const void* x, const void* matrix,
                                   void* y, void* stream) {
  using namespace eeg_gan;
  switch (dtype) {
    case 0: return forward<float, float>(*shape, x, matrix, y, stream);
    case 1: return forward<double, double>(*shape, x, matrix, y, stream);
    case 2: return forward<__nv_bfloat16, float>(*shape, x, matrix, y, stream);
    case 3: return forward<__half, float>(*shape, x, matrix, y, stream);
    default: return cudaErrorInvalidValue;
  }
}

extern "C" int eeg_gan_affine_warp_adjoint(const eeg_gan::WarpShape* shape, int dtype, const void* grad,
                                           const void* matrix, void* x, void* stream) {
  using namespace eeg_gan;
  switch (dtype) {
    case 0: return adjoint<float, float>(*shape, grad, matrix, x, stream);
    case 1: return adjoint<double, double>(*shape, grad, matrix, x, stream);
    case 2: return adjoint<__nv_bfloat16, float>(*shape, grad, matrix, x, stream);
    case 3: return adjoint<__half, float>(*shape, grad, matrix, x, stream);
    default: return cudaErrorInvalidValue;
  }
}
