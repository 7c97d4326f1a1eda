// upfirdn2d on the CPU at any up, down, padding and type, row by row. Included by upfirdn2d.cpp alone.
#pragma once
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "check.h"
#include "half.h"
#include "upfirdn2d.h"

namespace eeg_gan {
namespace {

// What one axis needs for each output: where its first input lies and which of the `up` phases of the taps it meets.
struct Steps {
  std::vector<int64_t> first, phase;
  std::vector<int64_t> count;  // inputs per phase
  int64_t longest = 0;

  explicit Steps(const UpfirdnAxis& axis) : first(axis.out), phase(axis.out), count(axis.up) {
    for (int64_t p = 0; p < axis.up; ++p) count[p] = axis.taps > p ? (axis.taps - p + axis.up - 1) / axis.up : 0;
    longest = count[0];
    int64_t input = axis.pad > 0 ? -(axis.pad / axis.up) : (-axis.pad + axis.up - 1) / axis.up;
    int64_t p = input * axis.up + axis.pad;  // 0 <= p < up
    for (int64_t m = 0; m < axis.out; ++m) {
      first[m] = input, phase[m] = p;
      const int64_t ahead = std::max<int64_t>(0, (axis.down - p + axis.up - 1) / axis.up);
      input += ahead, p += ahead * axis.up - axis.down;
    }
  }
};

// Taps in the order of correlation, cut into phases: phase p holds taps p, p + up, ...
template <class A>
std::vector<std::vector<A>> phases(const double* taps, int64_t n, int64_t up) {
  std::vector<std::vector<A>> cut(up);
  for (int64_t k = 0; k < n; ++k) cut[k % up].push_back(A(taps[k]));
  return cut;
}

template <class A>
struct Plan {
  UpfirdnJob job;
  Steps sx, sy;
  std::vector<std::vector<std::vector<A>>> wx;  // one set, or one for each row of the 2-D filter
  std::vector<std::vector<A>> wy;               // empty for a 2-D filter
  int64_t pixel, row, planes;                   // values between pixels and rows; images or planes
  int64_t tile;                                 // output columns at a time
  std::vector<int64_t> rows_apart, pixels_apart, decimated;

  explicit Plan(const UpfirdnJob& j) : job(j), sx(j.ax), sy(j.ay) {}
};

template <int N, bool ADD, class A, class S>
EEG_GAN_INLINE void weighted(const S* __restrict src, const int64_t* at, const A* w, A* __restrict dst, int64_t n) {
  const S* s[N];
  A g[N];
  for (int k = 0; k < N; ++k) s[k] = src + at[k], g[k] = w[k];
#pragma GCC ivdep
  for (int64_t j = 0; j < n; ++j) {
    A sum = g[0] * load(s[0][j]);
#pragma GCC unroll 16
    for (int k = 1; k < N; ++k) sum += g[k] * load(s[k][j]);
    dst[j] = ADD ? dst[j] + sum : sum;
  }
}

// dst[j] = sum_k w[k] * src[at[k] + j]
template <class A, class S>
EEG_GAN_INLINE void combine(int64_t taps, const S* src, const int64_t* at, const A* w, A* dst, int64_t n) {
  switch (taps) {
    case 0: return void(std::fill_n(dst, n, A(0)));
    case 2: return weighted<2, false>(src, at, w, dst, n);
    case 4: return weighted<4, false>(src, at, w, dst, n);
    case 6: return weighted<6, false>(src, at, w, dst, n);
  }
  weighted<1, false>(src, at, w, dst, n);
  int64_t k = 1;
  for (; k + 4 <= taps; k += 4) weighted<4, true>(src, at + k, w + k, dst, n);
  for (; k < taps; ++k) weighted<1, true>(src, at + k, w + k, dst, n);
}

// The vertical filter: input rows of any type, which lie `at` apart, into one of the computing type.
#define EEG_GAN_VERTICAL(S, A)                                                                                    \
  EEG_GAN_CLONES void vertical(int64_t taps, const S* src, const int64_t* at, const A* w, A* dst, int64_t n) { \
    combine(taps, src, at, w, dst, n);                                                                            \
  }
EEG_GAN_VERTICAL(float, float)
EEG_GAN_VERTICAL(double, double)
EEG_GAN_VERTICAL(BFloat16, float)
EEG_GAN_VERTICAL(Float16, float)
#undef EEG_GAN_VERTICAL

EEG_GAN_CLONES void store_row(const float* from, BFloat16* to, int64_t n) {
  for (int64_t j = 0; j < n; ++j) store(to + j, from[j]);
}
EEG_GAN_CLONES void store_row(const float* from, Float16* to, int64_t n) {
  for (int64_t j = 0; j < n; ++j) store(to + j, from[j]);
}
template <class A>
void store_row(const A* from, A* to, int64_t n) {
  std::copy_n(from, n, to);
}

template <class A>
struct Scratch {
  std::vector<A> tmp, parts, line, total;
};

constexpr int64_t WIDE = 16;  // channels from which single pixels make good loops

// Outputs [begin, end) of a row from `tmp`, which holds the columns under them from first[begin] on, without gaps.
template <class A>
EEG_GAN_INLINE void filter_across(const Plan<A>& plan, const std::vector<std::vector<A>>& w, const A* tmp,
                                  int64_t columns, A* __restrict dst, int64_t begin, int64_t end, A* parts) {
  const UpfirdnAxis& axis = plan.job.ax;
  const int64_t c = plan.pixel, origin = plan.sx.first[begin], n = end - begin;
  const int64_t* apart = plan.pixels_apart.data();
  if (axis.up == 1 && axis.down == 1) {
    combine(axis.taps, tmp, apart, w[0].data(), dst, n * c);
  } else if (c == 1 && axis.up == 1 && axis.down == 2 && axis.taps == 4) {
    const A w0 = w[0][0], w1 = w[0][1], w2 = w[0][2], w3 = w[0][3];
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i)
      dst[i] = w0 * tmp[2 * i] + w1 * tmp[2 * i + 1] + w2 * tmp[2 * i + 2] + w3 * tmp[2 * i + 3];
  } else if (c == 1 && axis.up == 2 && axis.down == 1 && axis.taps == 4) {
    const int64_t p = plan.sx.phase[begin], second = 1 - p;  // where the second of two outputs starts
    const A w0 = w[p][0], w1 = w[p][1], w2 = w[1 - p][0], w3 = w[1 - p][1];
#pragma GCC ivdep
    for (int64_t i = 0; i < n / 2; ++i) {
      dst[2 * i] = w0 * tmp[i] + w1 * tmp[i + 1];
      dst[2 * i + 1] = w2 * tmp[i + second] + w3 * tmp[i + 1 + second];
    }
    if (n % 2) dst[n - 1] = w0 * tmp[n / 2] + w1 * tmp[n / 2 + 1];
  } else if (c < WIDE && axis.up == 1) {  // each d-th column together, then as without
    const int64_t d = axis.down, part = plan.tile * c + axis.taps * c;
    for (int64_t r = 0; r < d; ++r)
      for (int64_t i = 0; i * d + r < columns; ++i)
        for (int64_t k = 0; k < c; ++k) parts[r * part + i * c + k] = tmp[(i * d + r) * c + k];
    combine(axis.taps, parts, plan.decimated.data(), w[0].data(), dst, n * c);
  } else if (c < WIDE && axis.down == 1) {  // each u-th output together, then interleaved
    const int64_t u = axis.up, part = plan.tile * c;
    for (int64_t r = 0; r < std::min(u, n); ++r) {
      const int64_t m = begin + r, p = plan.sx.phase[m], count = (n - r + u - 1) / u;
      combine(plan.sx.count[p], tmp + (plan.sx.first[m] - origin) * c, apart, w[p].data(), parts + r * part, count * c);
    }
    for (int64_t m = 0, r = 0, i = 0; m < n; ++m) {
      for (int64_t k = 0; k < c; ++k) dst[m * c + k] = parts[r * part + i * c + k];
      if (++r == u) r = 0, ++i;
    }
  } else {
    for (int64_t m = begin; m < end; ++m) {
      const int64_t p = plan.sx.phase[m];
      combine(plan.sx.count[p], tmp + (plan.sx.first[m] - origin) * c, apart, w[p].data(), dst + (m - begin) * c, c);
    }
  }
}
EEG_GAN_CLONES void across(const Plan<float>& plan, const std::vector<std::vector<float>>& w, const float* tmp,
                           int64_t columns, float* dst, int64_t begin, int64_t end, float* parts) {
  filter_across(plan, w, tmp, columns, dst, begin, end, parts);
}
EEG_GAN_CLONES void across(const Plan<double>& plan, const std::vector<std::vector<double>>& w, const double* tmp,
                           int64_t columns, double* dst, int64_t begin, int64_t end, double* parts) {
  filter_across(plan, w, tmp, columns, dst, begin, end, parts);
}

// Rows [y_begin, y_end) of one plane or image.
template <class T, class A>
void filter_rows(const Plan<A>& plan, int64_t plane, int64_t y_begin, int64_t y_end, Scratch<A>& scratch) {
  const UpfirdnJob& job = plan.job;
  const int64_t c = plan.pixel, width = job.ax.size;
  const T* x = static_cast<const T*>(job.x) + plane * job.ay.size * plan.row;
  T* out = static_cast<T*>(job.y) + plane * job.ay.out * job.ax.out * c;
  A *tmp = scratch.tmp.data(), *parts = scratch.parts.data(), *line = scratch.line.data();
  for (int64_t begin = 0; begin < job.ax.out; begin += plan.tile) {
    const int64_t end = std::min(job.ax.out, begin + plan.tile), n = (end - begin) * c, from = plan.sx.first[begin];
    const int64_t to = plan.sx.first[end - 1] + plan.sx.count[plan.sx.phase[end - 1]];
    const int64_t left = std::clamp<int64_t>(from, 0, width), right = std::clamp<int64_t>(to, left, width);
    std::fill_n(tmp, (to - from) * c, A(0));  // columns outside stay zero
    A* inside = tmp + (left - from) * c;
    for (int64_t m = y_begin; m < y_end; ++m) {
      T* dst = out + (m * job.ax.out + begin) * c;
      const int64_t p = plan.sy.phase[m], first = plan.sy.first[m];
      const int64_t skip = std::max<int64_t>(0, -first), stop = std::min(plan.sy.count[p], job.ay.size - first);
      const T* src = x + (first + skip) * plan.row + left * c;
      if (stop <= skip || right <= left) {
        std::memset(static_cast<void*>(dst), 0, n * sizeof(T));
        continue;
      }
      A* result = line;
      if (!plan.wy.empty()) {
        if constexpr (std::is_same_v<T, A>) result = dst;
        vertical(stop - skip, src, plan.rows_apart.data(), plan.wy[p].data() + skip, inside, (right - left) * c);
        across(plan, plan.wx[0], tmp, to - from, result, begin, end, parts);
      } else {  // a 2-D filter row by row
        result = scratch.total.data();
        std::fill_n(result, n, A(0));
        const A one = 1;
        for (int64_t q = skip; q < stop; ++q, src += plan.row) {
          vertical(1, src, plan.rows_apart.data(), &one, inside, (right - left) * c);
          across(plan, plan.wx[p + q * job.ay.up], tmp, to - from, line, begin, end, parts);
          for (int64_t j = 0; j < n; ++j) result[j] += line[j];
        }
      }
      if (static_cast<void*>(result) != static_cast<void*>(dst)) store_row(result, dst, n);
    }
  }
}

// The units of one thread; each is a block of rows of an image or plane.
struct Units {
  int64_t begin, end, rows, per_plane;
};

template <class T, class A>
void run(const Plan<A>& plan, const Units& units) {
  Scratch<A> scratch;
  const int64_t height = plan.job.ay.out, line = plan.tile * plan.pixel;
  scratch.tmp.resize((((plan.tile - 1) * plan.job.ax.down + plan.job.ax.taps) / plan.job.ax.up + 2) * plan.pixel);
  scratch.line.resize(line);
  if (plan.wy.empty()) scratch.total.resize(line);
  if (plan.pixel < WIDE)
    scratch.parts.resize(std::max(plan.job.ax.down, plan.job.ax.up) * (line + plan.job.ax.taps * plan.pixel));
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t plane = unit / units.per_plane, y = unit % units.per_plane * units.rows;
    filter_rows<T>(plan, plane, y, std::min(height, y + units.rows), scratch);
  }
}

}  // namespace
}  // namespace eeg_gan
