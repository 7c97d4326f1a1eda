// Kernels with one fault each, and two without, to show what the simulator finds.
#include "launch.cuh"

namespace {

// Every block reverses its part.
template <bool SYNC>
__global__ void reverse(float* x) {
  __shared__ float part[64];
  const int i = threadIdx.x;
  part[i] = x[blockIdx.x * 64 + i];
  if (SYNC) __syncthreads();
  x[blockIdx.x * 64 + i] = part[63 - i];
}

__global__ void sync_at_two_places(float* x) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  x[threadIdx.x] = 1;
}

__global__ void sync_after_some_left(float* x) {
  if (threadIdx.x == 7) return;
  __syncthreads();
  x[threadIdx.x] = 1;
}

__global__ void lanes_that_never_meet(float* x) {
  float value = x[threadIdx.x];
  if (threadIdx.x % 2) {
    value = __shfl_xor_sync(0xffffffffu, value, 1);
  } else {
    __syncthreads();
  }
  x[threadIdx.x] = value;
}

__global__ void reads_what_nobody_wrote(float* x) {
  EEG_GAN_DYNAMIC_SHARED(float, part);
  if (threadIdx.x) part[threadIdx.x] = 1;
  __syncthreads();
  x[threadIdx.x] = part[63 - threadIdx.x];
}

// Like the kernels of csrc, a template: its variables may lie elsewhere than a plain function's.
template <class T>
__global__ void reads_static_that_nobody_wrote(T* x) {
  __shared__ T part[64];
  __shared__ int count;
  const int i = threadIdx.x;
  if (i) part[i] = count == -1 ? T(1) : T(2);
  __syncthreads();
  x[i] = part[63 - i];
  __syncthreads();
  part[i] = T(3), count = 0;  // for the next block to find, which it must not
}

__global__ void writes_past_the_end(float* x) {
  if (threadIdx.x) x[threadIdx.x + 1] = 1;
}

__global__ void reads_past_shared(float* x) {
  EEG_GAN_DYNAMIC_SHARED(float, part);
  part[threadIdx.x] = 1;
  __syncthreads();
  x[threadIdx.x] = part[threadIdx.x + 1];
}

// The sum of each block of 64, with votes and shuffles of every kind.
__global__ void sums(const float* x, float* sum, double* again, unsigned* count) {
  __shared__ float warps[2];
  const int i = threadIdx.x;
  float value = __ldg(x + blockIdx.x * 64 + i);
  const unsigned positive = __ballot_sync(0xffffffffu, value > 0);
  for (int by = 16; by; by /= 2) value += __shfl_down_sync(0xffffffffu, value, by);
  double wide = __shfl_sync(0xffffffffu, double(value), 0);
  if (i % 32 == 0) warps[i / 32] = value;
  if (i % 32 < 4) __syncwarp(0xfu);
  __syncwarp();
  __syncthreads();
  if (i == 0) sum[blockIdx.x] = warps[0] + warps[1];
  if (i % 32 == 0) atomicAdd(again, wide), atomicAdd(count, unsigned(__builtin_popcount(positive)));
}

}  // namespace

#define LAUNCHER(name, shared_bytes, ...)                       \
  extern "C" int run_##name(float* x) {                         \
    EEG_GAN_LAUNCH(name, 1, 64, shared_bytes, 0, __VA_ARGS__);  \
    return cudaGetLastError();                                  \
  }
LAUNCHER(sync_at_two_places, 0, x)
LAUNCHER(sync_after_some_left, 0, x)
LAUNCHER(lanes_that_never_meet, 0, x)
LAUNCHER(reads_what_nobody_wrote, 64 * sizeof(float), x)
LAUNCHER(writes_past_the_end, 0, x)
LAUNCHER(reads_past_shared, 64 * sizeof(float), x)

extern "C" int run_reads_static(float* x, double* y, int blocks) {
  EEG_GAN_LAUNCH(reads_static_that_nobody_wrote<float>, blocks, 64, 0, 0, x);
  EEG_GAN_LAUNCH(reads_static_that_nobody_wrote<double>, blocks, 64, 0, 0, y);
  return cudaGetLastError();
}

extern "C" int run_reverse(float* x, int blocks, int sync) {
  if (sync) {
    EEG_GAN_LAUNCH((reverse<true>), blocks, 64, 0, 0, x);
  } else {
    EEG_GAN_LAUNCH((reverse<false>), blocks, 64, 0, 0, x);
  }
  return cudaGetLastError();
}

extern "C" int run_sums(const float* x, float* sum, double* again, unsigned* count, int blocks) {
  EEG_GAN_LAUNCH(sums, blocks, 64, 0, 0, x, sum, again, count);
  return cudaGetLastError();
}

extern "C" int run_with(float* x, int grid_x, int grid_y, int threads, int shared_bytes, int allowed) {
  if (allowed) {
    const int code =
        cudaFuncSetAttribute(reads_what_nobody_wrote, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
    if (code) return code;
  }
  EEG_GAN_LAUNCH(reads_what_nobody_wrote, dim3(grid_x, grid_y), threads, shared_bytes, 0, x);
  return cudaGetLastError();
}
