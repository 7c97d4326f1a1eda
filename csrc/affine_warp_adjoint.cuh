// The adjoint of the affine warp on a GPU: one block per tile of image pixels of a plane.
//
// A tile of pixels appears in the endlessly reflected plane many times, straight and mirrored. For each appearance that
// the output can read, every fine sample ("cell") near it collects the output positions within one fine sample of it,
// from the upsampled gradient, chunk by chunk; then the 12 taps take the cells to the pixels. In a row of output
// positions those of a cell are an interval, so that no inverse is needed: it only narrows down rows and chunks, and
// where the matrix is (nearly) singular all are visited. Where the appearances are very many (strong shrinking, or an
// image of few pixels), one period of cells visits all positions, modulo the period.
#pragma once
#include "affine_warp_common.cuh"

namespace eeg_gan {
namespace {

constexpr int kSide = 16, kCells = 2 * kSide + 2 * kMargin, kChunk = 32, kPart = kChunk / 2 + kMargin;
constexpr int kAppearances = 8;  // per axis and direction
static_assert(kSide * kSide == kThreads, "a thread owns a pixel");

struct Appearances {  // of pixels first .. first + kSide - 1: k = low .. high, straight or mirrored
  int low[2], high[2], period;
};

__device__ __forceinline__ Appearances appearances_of(const Range& r, int first, int size, bool& wrap) {
  const int period = size > 1 ? 2 * (size - 1) : 1;
  Appearances at{{0, 0}, {0, 0}, period};
  if (!modest(r)) {
    wrap = true;
    return at;
  }
  const double low = floor((r.low - 8) / 2), high = ceil((r.high + 8) / 2);  // pixels
  at.low[0] = static_cast<int>(ceil((low - first - (kSide - 1)) / period));
  at.high[0] = static_cast<int>(floor((high - first) / period));
  at.low[1] = static_cast<int>(ceil((low + first) / period));
  at.high[1] = static_cast<int>(floor((high + first + (kSide - 1)) / period));
  wrap = wrap || at.high[0] - at.low[0] >= kAppearances || at.high[1] - at.low[1] >= kAppearances;
  return at;
}

struct AdjointPlan {  // thread 0 makes it for the block; output positions count from 0 here
  WarpMap map;
  double bx, by, ax, ay;  // the inverse of the map's linear part, if it is regular
  Appearances x, y;
  bool wrap, regular;
};

template <class T>
__device__ EEG_GAN_APART AdjointPlan adjoint_plan(const T* matrix, int row, int column, int h, int w) {
  AdjointPlan plan{warp_map(matrix, h, w), 0, 0, 0, 0, {}, {}, false, false};
  WarpMap& map = plan.map;
  map.x1 -= kMargin * (map.xb + map.xa), map.y1 -= kMargin * (map.yb + map.ya);
  const double last_b = 2 * w + 2 * kMargin - 1, last_a = 2 * h + 2 * kMargin - 1;
  plan.x = appearances_of(range_of(map.xb, map.xa, map.x1, 0, last_b, 0, last_a), column, w, plan.wrap);
  plan.y = appearances_of(range_of(map.yb, map.ya, map.y1, 0, last_b, 0, last_a), row, h, plan.wrap);
  if (plan.wrap) {
    plan.x = {{0, 0}, {0, 0}, plan.x.period}, plan.y = {{0, 0}, {0, 0}, plan.y.period};
  }
  const double determinant = map.xb * map.ya - map.xa * map.yb;
  const double size = (fabs(map.xb) + fabs(map.xa)) * (fabs(map.yb) + fabs(map.ya));
  plan.regular = !plan.wrap && fabs(determinant) > 1e-6 * size;
  if (plan.regular) {
    plan.bx = map.ya / determinant, plan.by = -map.xa / determinant;
    plan.ax = -map.yb / determinant, plan.ay = map.xb / determinant;
  }
  return plan;
}

template <class T>
__device__ __forceinline__ void narrow_down(T slope, T inverse, T at_zero, T& low, T& high) {
  if (slope * slope < T(1e-8)) return;  // all of the chunk or nothing of it: the weights decide
  const T middle = -at_zero * inverse, half = (inverse < 0 ? -inverse : inverse) + T(0.2);
  low = middle - half > low ? middle - half : low;
  high = middle + half < high ? middle + half : high;
}

template <class T>
__device__ __forceinline__ T tent(T distance) {
  const T weight = 1 - (distance < 0 ? -distance : distance);
  return weight > 0 ? weight : T(0);
}

// What all positions of a chunk give to one cell, modulo the period.
template <class T>
__device__ EEG_GAN_APART T visit_all(const AdjointPlan& plan, const T* fine, double u0, double v0, int rows,
                                     int columns) {
  const double period_x = 2 * plan.x.period, period_y = 2 * plan.y.period;
  T sum = 0;
  for (int a = 0; a < rows; ++a) {
    for (int b = 0; b < columns; ++b) {
      const double u = u0 + plan.map.xb * b + plan.map.xa * a, v = v0 + plan.map.yb * b + plan.map.ya * a;
      const T du = static_cast<T>(u - period_x * rint(u / period_x));
      const T dv = static_cast<T>(v - period_y * rint(v / period_y));
      sum += tent(du) * tent(dv) * fine[a * kChunk + b];
    }
  }
  return sum;
}

// The chunks that hold positions low to high, clipped to 0 .. count - 1; from > to: none.
__device__ __forceinline__ void chunks_of(double low, double high, int count, int& from, int& to) {
  const double first = low > 0 ? low : 0, last = high < count - 1 ? high : count - 1;
  from = first <= last ? static_cast<int>(first) / kChunk : 0;
  to = first <= last ? static_cast<int>(last) / kChunk : -1;
}

template <class S, class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    adjoint_kernel(WarpShape s, const S* __restrict__ grad, const T* __restrict__ matrix, S* __restrict__ x) {
  __shared__ T cells[kCells * kCells], across[kCells * kSide];
  __shared__ AdjointPlan plan;
  __shared__ T part[kPart * kPart], taller[kChunk * kPart], fine[kChunk * kChunk];
  const int tiles_x = (s.w + kSide - 1) / kSide, tiles = tiles_x * ((s.h + kSide - 1) / kSide);
  const int fine_w = 2 * s.w + 2 * kMargin, fine_h = 2 * s.h + 2 * kMargin;
  const int ty = threadIdx.x / kSide, tx = threadIdx.x % kSide;
  const int64_t units = s.n * s.c * tiles;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t plane = unit / tiles, n = plane / s.c, c = plane - n * s.c;
    const int tile = static_cast<int>(unit - plane * tiles);
    const int row = tile / tiles_x * kSide, column = tile % tiles_x * kSide;
    const S* image = grad + n * s.read[0] + c * s.read[1];
    __syncthreads();
    if (threadIdx.x == 0) plan = adjoint_plan(matrix + n * 6, row, column, s.h, s.w);
    __syncthreads();
    const WarpMap& map = plan.map;
    const bool wrap = plan.wrap, regular = plan.regular;
    const T xb = static_cast<T>(map.xb), xa = static_cast<T>(map.xa), yb = static_cast<T>(map.yb);
    const T ya = static_cast<T>(map.ya), inverse_x = 1 / xb, inverse_y = 1 / yb;
    const T row_x = static_cast<T>(plan.ax), row_y = static_cast<T>(plan.ay);
    const T reach = static_cast<T>(fabs(plan.ax) + fabs(plan.ay) + 0.2);
    T total = 0;

    for (int mirror_y = 0; mirror_y < 2; ++mirror_y)
    for (int mirror_x = 0; mirror_x < 2; ++mirror_x)
    for (int ky = plan.y.low[mirror_y]; ky <= plan.y.high[mirror_y]; ++ky)
    for (int kx = plan.x.low[mirror_x]; kx <= plan.x.high[mirror_x]; ++kx) {
      const int64_t first_x = int64_t{kx} * plan.x.period + (mirror_x ? -(column + kSide - 1) : column);
      const int64_t first_y = int64_t{ky} * plan.y.period + (mirror_y ? -(row + kSide - 1) : row);
      const double cell_x = 2.0 * first_x - kMargin, cell_y = 2.0 * first_y - kMargin;  // of cell 0
      int from_x = 0, to_x = (fine_w - 1) / kChunk, from_y = 0, to_y = (fine_h - 1) / kChunk;
      if (regular) {
        const double u0 = cell_x - 1 - map.x1, u1 = u0 + kCells + 1, v0 = cell_y - 1 - map.y1, v1 = v0 + kCells + 1;
        const Range b = range_of(plan.bx, plan.by, 0, u0, u1, v0, v1);
        const Range a = range_of(plan.ax, plan.ay, 0, u0, u1, v0, v1);
        chunks_of(b.low - 1, b.high + 1, fine_w, from_x, to_x), chunks_of(a.low - 1, a.high + 1, fine_h, from_y, to_y);
      }
      if (from_x > to_x || from_y > to_y) continue;
#pragma unroll 1
      for (int at = threadIdx.x; at < kCells * kCells; at += kThreads) cells[at] = 0;  // each by its owner

      for (int chunk_y = from_y; chunk_y <= to_y; ++chunk_y)
      for (int chunk_x = from_x; chunk_x <= to_x; ++chunk_x) {
        const int a0 = chunk_y * kChunk, b0 = chunk_x * kChunk;
        const int rows = fine_h - a0 < kChunk ? fine_h - a0 : kChunk;
        const int columns = fine_w - b0 < kChunk ? fine_w - b0 : kChunk;
        if (!wrap) {
          const Range u = range_of(map.xb, map.xa, map.x1 - cell_x, b0, b0 + columns - 1, a0, a0 + rows - 1);
          const Range v = range_of(map.yb, map.ya, map.y1 - cell_y, b0, b0 + columns - 1, a0, a0 + rows - 1);
          if (u.high < -1.1 || u.low > kCells + 0.1 || v.high < -1.1 || v.low > kCells + 0.1) continue;
        }
#pragma unroll 1
        for (int at = threadIdx.x; at < kPart * kPart; at += kThreads) {
          const int i = a0 / 2 - kMargin + at / kPart, j = b0 / 2 - kMargin + at % kPart;
          const bool inside = i >= 0 && i < s.h && j >= 0 && j < s.w;
          part[at] = inside ? static_cast<T>(number(image[i * s.read[2] + j * s.read[3]])) : T(0);
        }
        __syncthreads();
#pragma unroll 1
        for (int at = threadIdx.x; at < kChunk * kPart; at += kThreads) {
          const int r = at / kPart, odd = r & 1;
          const T* from = part + (r / 2 + kMargin) * kPart + at % kPart;
          T sum = 0;
#pragma unroll
          for (int t = 0; t < 6; ++t) {
            sum += (odd ? static_cast<T>(warp_tap(2 * t + 1)) : static_cast<T>(warp_tap(2 * t))) * from[-t * kPart];
          }
          taller[at] = sum;
        }
        __syncthreads();
#pragma unroll 1
        for (int at = threadIdx.x; at < kChunk * kChunk; at += kThreads) {
          const int q = at % kChunk, odd = q & 1;
          const T* from = taller + at / kChunk * kPart + q / 2 + kMargin;
          T sum = 0;
#pragma unroll
          for (int t = 0; t < 6; ++t) {
            sum += (odd ? static_cast<T>(warp_tap(2 * t + 1)) : static_cast<T>(warp_tap(2 * t))) * from[-t];
          }
          fine[at] = sum;
        }
        __syncthreads();
        const double start_u = map.xb * b0 + map.xa * a0 + map.x1 - cell_x;
        const double start_v = map.yb * b0 + map.ya * a0 + map.y1 - cell_y;
#pragma unroll 1
        for (int at = threadIdx.x; at < kCells * kCells; at += kThreads) {
          const int cy = at / kCells, cx = at - cy * kCells;
          T sum = 0;
          if (wrap) {
            sum = visit_all(plan, fine, start_u - cx, start_v - cy, rows, columns);
          } else {
            const T u0 = static_cast<T>(start_u) - T(cx), v0 = static_cast<T>(start_v) - T(cy);
            T top = 0, bottom = static_cast<T>(rows - 1);
            if (regular) {
              const T middle = -(row_x * u0 + row_y * v0);
              top = middle - reach > top ? middle - reach : top;
              bottom = middle + reach < bottom ? middle + reach : bottom;
            }
#pragma unroll 1
            for (int a = static_cast<int>(ceil(top)); static_cast<T>(a) <= bottom; ++a) {
              const T u = u0 + xa * static_cast<T>(a), v = v0 + ya * static_cast<T>(a);
              T low = 0, high = static_cast<T>(columns - 1);
              narrow_down(xb, inverse_x, u, low, high), narrow_down(yb, inverse_y, v, low, high);
#pragma unroll 1
              for (int b = static_cast<int>(ceil(low)); static_cast<T>(b) <= high; ++b) {
                sum += tent(u + xb * static_cast<T>(b)) * tent(v + yb * static_cast<T>(b)) * fine[a * kChunk + b];
              }
            }
          }
          cells[at] += sum;
        }
        __syncthreads();
      }
      __syncthreads();
#pragma unroll 1
      for (int at = threadIdx.x; at < kCells * kSide; at += kThreads) {
        const T* from = cells + at / kSide * kCells + 2 * (at % kSide);
        T sum = 0;
#pragma unroll
        for (int k = 0; k < kTaps; ++k) sum += static_cast<T>(2 * warp_tap(k)) * from[k];
        across[at] = sum;
      }
      __syncthreads();
      // Edge pixels are their own mirror images: they count once.
      const bool counts_x = !mirror_x || (column + tx > 0 && column + tx < s.w - 1);
      const bool counts_y = !mirror_y || (row + ty > 0 && row + ty < s.h - 1);
      if (counts_x && counts_y) {
        const T* from = across + 2 * (mirror_y ? kSide - 1 - ty : ty) * kSide + (mirror_x ? kSide - 1 - tx : tx);
        T sum = 0;
#pragma unroll
        for (int k = 0; k < kTaps; ++k) sum += static_cast<T>(2 * warp_tap(k)) * from[k * kSide];
        total += sum;
      }
    }
    if (row + ty < s.h && column + tx < s.w) {
      put(x + n * s.written[0] + c * s.written[1] + (row + ty) * s.written[2] + (column + tx) * s.written[3], total);
    }
  }
}

}  // namespace
}  // namespace eeg_gan
