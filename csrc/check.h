// What every operator's C++ file needs: tensors of the stable ABI, checks that name operator and argument, the stream.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

// One source, several instruction sets: the loader picks the version that the machine has. Only for plain functions;
// templates that they call are inlined into each version. AddressSanitizer starts too late for the choice.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define EEG_GAN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EEG_GAN_CLONES
#endif
#define EEG_GAN_INLINE inline __attribute__((always_inline))

namespace eeg_gan {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Work is cut into units whose bounds do not depend on the number of threads, so that results do not either.
template <class F>
void for_each_unit(int64_t units, int64_t grain, const F& f) {
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) f(unit);
  });
}

// Bytes of a result up to which whoever reads it next finds it in the caches. A larger one is better written past them:
// that saves reading what is about to be overwritten. Half of what a group of cores usually has as its last cache, which
// other programs use too; sysconf would tell that of all groups together.
constexpr int64_t KEPT_IN_CACHES = int64_t(16) << 20;

}  // namespace eeg_gan

#ifdef EEG_GAN_CUDA
#include <cuda_runtime.h>

// In libtorch_cuda.so alone: weak, so that a CPU build of torch loads this library too.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace eeg_gan {

inline cudaStream_t current_stream(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "this build of torch has no CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == 0, "torch gave no CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op, int error) {
  STD_TORCH_CHECK(error == 0, op, ": the CUDA kernel could not be started: ", cudaGetErrorString(cudaError_t(error)));
}

}  // namespace eeg_gan
#endif
