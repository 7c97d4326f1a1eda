// The two things that a kernel file says differently when a test compiles it as C++ (tests/cusim): launch and dynamic
// shared memory.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#ifdef EEG_GAN_SIMULATED
#include "cusim.h"
#define EEG_GAN_LAUNCH CUSIM_LAUNCH
#define EEG_GAN_DYNAMIC_SHARED CUSIM_DYN_SHARED
#else
#define EEG_GAN_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define EEG_GAN_DYNAMIC_SHARED(T, name)                         \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  T* name = reinterpret_cast<T*>(name##_bytes)
#endif
