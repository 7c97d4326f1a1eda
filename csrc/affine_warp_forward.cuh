// The affine warp on a GPU: one block per tile of output pixels of a plane.
#pragma once
#include "affine_warp_common.cuh"

namespace eeg_gan {
namespace {

constexpr int kTileX = 32, kTileY = 16, kFineX = 2 * kTileX + 2 * kMargin, kFineY = 2 * kTileY + 2 * kMargin;
constexpr int kFixed = kFineY * kFineX + kFineY * kTileX;  // numbers of shared memory besides the pixels
constexpr int kSharedBytes = 47 * 1024;

template <class T>  // pixels that are kept in shared memory: 71 x 71 in float32, 39 x 39 in float64
constexpr int kSourceMax = kSharedBytes / sizeof(T) - kFixed < 5041 ? kSharedBytes / sizeof(T) - kFixed : 5041;

struct Side {  // one axis of the pixels that a tile reads
  double start;   // fine position of index 0
  int first, pixels, last;
};

__device__ __forceinline__ Side side_of(const Range& r, int size) {
  const double origin = floor(r.low / 2);
  const double cells = floor(r.high) - 2 * origin + 3;  // one to spare for rounding
  const int period = size > 1 ? 2 * (size - 1) : 1;
  const int first = static_cast<int>(static_cast<int64_t>(origin) % period) - 3;
  const int last = cells < 1 << 20 ? static_cast<int>(cells) - 2 : 1 << 20;
  return {2 * origin, first, last / 2 + 7, last};
}

struct ForwardPlan {  // thread 0 makes it for the block; the map is that of the tile's own fine positions, from 0
  WarpMap map;
  Side x, y;
  bool staged;
};

template <class T>
__device__ EEG_GAN_APART ForwardPlan forward_plan(const T* matrix, int row, int column, int h, int w) {
  ForwardPlan plan{warp_map(matrix, h, w), {}, {}, false};
  WarpMap& map = plan.map;
  const double b = 2.0 * column - kMargin, a = 2.0 * row - kMargin;
  map.x1 += map.xb * b + map.xa * a, map.y1 += map.yb * b + map.ya * a;
  const Range across = range_of(map.xb, map.xa, map.x1, 0, kFineX - 1, 0, kFineY - 1);
  const Range down = range_of(map.yb, map.ya, map.y1, 0, kFineX - 1, 0, kFineY - 1);
  if (modest(across) && modest(down)) {
    plan.x = side_of(across, w), plan.y = side_of(down, h);
    plan.staged = static_cast<int64_t>(plan.x.pixels) * plan.y.pixels <= kSourceMax<T>;
  }
  return plan;
}

// One sample straight from the image.
template <class T, class S>
__device__ EEG_GAN_APART T direct(const S* image, int64_t stride_y, int64_t stride_x, const WarpMap& map, int q, int r,
                                  int h, int w) {
  const int period_x = warp_period(w), period_y = warp_period(h);
  T weights_x[7], weights_y[7];
  double right, below;
  const int i = split(reduced(map.xb * q + map.xa * r + map.x1, period_x), period_x, right);
  const int j = split(reduced(map.yb * q + map.ya * r + map.y1, period_y), period_y, below);
  seven(i, static_cast<T>(right), weights_x), seven(j, static_cast<T>(below), weights_y);
  T sum = 0;
#pragma unroll
  for (int k = 0; k < 7; ++k) {
    const S* from = image + warp_reflected((j >> 1) - 3 + k, h) * stride_y;
    T part = 0;
#pragma unroll
    for (int m = 0; m < 7; ++m) part += weights_x[m] * number(from[warp_reflected((i >> 1) - 3 + m, w) * stride_x]);
    sum += weights_y[k] * part;
  }
  return sum;
}

// Each sample takes 7 x 7 pixels; they come from shared memory, with the reflection resolved, where the tile's pixels
// fit (scales up to about 1.4 at any angle), else from the image itself.
template <class S, class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) forward_kernel(WarpShape s, const S* __restrict__ x,
                                                           const T* __restrict__ matrix, S* __restrict__ y) {
  EEG_GAN_DYNAMIC_SHARED(T, fine);  // [fine row, (even columns, odd columns)]
  __shared__ ForwardPlan plan;
  T *narrow = fine + kFineY * kFineX, *source = narrow + kFineY * kTileX;
  const int tiles_x = (s.w + kTileX - 1) / kTileX, tiles = tiles_x * ((s.h + kTileY - 1) / kTileY);
  const int64_t units = s.n * s.c * tiles;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t plane = unit / tiles, n = plane / s.c, c = plane - n * s.c;
    const int tile = static_cast<int>(unit - plane * tiles);
    const int row = tile / tiles_x * kTileY, column = tile % tiles_x * kTileX;
    const S* image = x + n * s.read[0] + c * s.read[1];
    __syncthreads();  // the tile before is done with shared memory
    if (threadIdx.x == 0) plan = forward_plan<T>(matrix + n * 6, row, column, s.h, s.w);
    __syncthreads();
    const Side &side_x = plan.x, &side_y = plan.y;
    if (plan.staged) {
      for (int r = threadIdx.x / 32; r < side_y.pixels; r += kThreads / 32) {
        const S* from = image + warp_reflected(side_y.first + r, s.h) * s.read[2];
        for (int q = threadIdx.x % 32; q < side_x.pixels; q += 32) {
          source[r * side_x.pixels + q] = number(from[warp_reflected(side_x.first + q, s.w) * s.read[3]]);
        }
      }
      __syncthreads();
      const T u0 = static_cast<T>(plan.map.x1 - side_x.start), v0 = static_cast<T>(plan.map.y1 - side_y.start);
      const T xb = static_cast<T>(plan.map.xb), xa = static_cast<T>(plan.map.xa);
      const T yb = static_cast<T>(plan.map.yb), ya = static_cast<T>(plan.map.ya);
      for (int at = threadIdx.x; at < kFineY * kFineX; at += kThreads) {
        const int r = at / kFineX, q = at - r * kFineX;
        T right, below, weights_x[7], weights_y[7];
        const int i = split(u0 + xb * static_cast<T>(q) + xa * static_cast<T>(r), side_x.last, right);
        const int j = split(v0 + yb * static_cast<T>(q) + ya * static_cast<T>(r), side_y.last, below);
        seven(i, right, weights_x), seven(j, below, weights_y);
        const T* from = source + (j >> 1) * side_x.pixels + (i >> 1);
        T sum = 0;
#pragma unroll
        for (int k = 0; k < 7; ++k) {
          T part = 0;
#pragma unroll
          for (int m = 0; m < 7; ++m) part += weights_x[m] * from[k * side_x.pixels + m];
          sum += weights_y[k] * part;
        }
        fine[r * kFineX + (q & 1) * (kFineX / 2) + (q >> 1)] = sum;
      }
    } else {
      for (int at = threadIdx.x; at < kFineY * kFineX; at += kThreads) {
        const int r = at / kFineX, q = at - r * kFineX;
        const T sum = direct<T>(image, s.read[2], s.read[3], plan.map, q, r, s.h, s.w);
        fine[r * kFineX + (q & 1) * (kFineX / 2) + (q >> 1)] = sum;
      }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < kFineY * kTileX; at += kThreads) {
      const T* from = fine + at / kTileX * kFineX + at % kTileX;
      T sum = 0;
#pragma unroll
      for (int k = 0; k < kTaps; ++k) sum += static_cast<T>(warp_tap(k)) * from[(k & 1) * (kFineX / 2) + (k >> 1)];
      narrow[at] = sum;
    }
    __syncthreads();
    for (int at = threadIdx.x; at < kTileY * kTileX; at += kThreads) {
      const int r = at / kTileX, q = at % kTileX;
      if (row + r >= s.h || column + q >= s.w) continue;
      T sum = 0;
#pragma unroll
      for (int k = 0; k < kTaps; ++k) sum += static_cast<T>(warp_tap(k)) * narrow[(2 * r + k) * kTileX + q];
      put(y + n * s.written[0] + c * s.written[1] + (row + r) * s.written[2] + (column + q) * s.written[3], sum);
    }
  }
}

}  // namespace
}  // namespace eeg_gan
