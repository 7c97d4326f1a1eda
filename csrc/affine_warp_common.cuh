// What both CUDA kernels of the affine warp need: numbers in and out, ranges, weights.
#pragma once
#include "launch.cuh"

#include "affine_warp.h"

namespace eeg_gan {
namespace {

// Rare or done by one thread: kept out of the kernels, to which it would cost registers.
#ifdef __CUDACC__
#define EEG_GAN_APART __noinline__
#else
#define EEG_GAN_APART
#endif

constexpr int kThreads = 256;

__device__ __forceinline__ float number(float v) { return v; }
__device__ __forceinline__ double number(double v) { return v; }
__device__ __forceinline__ float number(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float number(__half v) { return __half2float(v); }
__device__ __forceinline__ void put(float* p, float v) { *p = v; }
__device__ __forceinline__ void put(double* p, double v) { *p = v; }
__device__ __forceinline__ void put(__nv_bfloat16* p, float v) { *p = __float2bfloat16(v); }
__device__ __forceinline__ void put(__half* p, float v) { *p = __float2half(v); }

struct Range {
  double low, high;
};

// The values of s * b + t * a + r over a rectangle.
__device__ __forceinline__ Range range_of(double s, double t, double r, double b0, double b1, double a0, double a1) {
  const double low = (s < 0 ? s * b1 : s * b0) + (t < 0 ? t * a1 : t * a0) + r;
  const double high = (s < 0 ? s * b0 : s * b1) + (t < 0 ? t * a0 : t * a1) + r;
  return {low, high};
}

__device__ __forceinline__ bool modest(const Range& r) { return r.low > -1e9 && r.high < 1e9; }  // false for no number

__device__ __forceinline__ double reduced(double place, int period) {
  return place - period * floor(place / period);
}

// An index that is safe whatever the position is, and the fraction.
template <class T>
__device__ __forceinline__ int split(T place, int last, T& fraction) {
  int index = 0;
  if (place > 0) index = place < static_cast<T>(last) ? static_cast<int>(place) : last;
  const T rest = place - static_cast<T>(index);
  fraction = rest < 0 ? T(0) : rest > 1 ? T(1) : rest;
  return index;
}

// Weights of seven pixels, from pixel j / 2 - 3 on, for a bilinear reading between fine samples j and j + 1.
template <class T>
__device__ __forceinline__ void seven(int j, T fraction, T weights[7]) {
  const bool odd_j = j & 1;
#pragma unroll
  for (int k = 0; k < 7; ++k) {
    const T even = k < 6 ? static_cast<T>(2 * warp_tap(kTaps - 1 - 2 * (k < 6 ? k : 0))) : T(0);
    const T even_before = k > 0 ? static_cast<T>(2 * warp_tap(kTaps + 1 - 2 * (k > 0 ? k : 1))) : T(0);
    const T odd = k > 0 ? static_cast<T>(2 * warp_tap(kTaps - 2 * (k > 0 ? k : 1))) : T(0);
    const T here = odd_j ? odd : even, next = odd_j ? even_before : odd;
    weights[k] = here + fraction * (next - here);
  }
}

}  // namespace
}  // namespace eeg_gan
