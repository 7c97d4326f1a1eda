// The tiles of the affine warp and of its adjoint on the CPU. Included by affine_warp.cpp alone.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "affine_warp.h"
#include "check.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only
#if defined(__GNUC__) && !defined(__clang__)
#define EEG_GAN_INDEPENDENT _Pragma("GCC ivdep")
#else
#define EEG_GAN_INDEPENDENT
#endif

namespace eeg_gan {
namespace {

constexpr int kTile = 64;                           // output pixels per side
constexpr int kFine = 2 * kTile + 2 * kMargin;      // fine output positions per side of a tile
constexpr int kPad = kMargin;                       // zeros around a row of the gradient
constexpr int64_t kWindowMax = int64_t{1} << 19;    // fine samples
constexpr double kFarthest = 1e9;

template <class T>
struct Filter {
  T down[kTaps], even[6], odd[6];  // of upsampling: taps for even and for odd fine positions
  Filter() {
    for (int k = 0; k < kTaps; ++k) down[k] = static_cast<T>(warp_tap(k));
    for (int k = 0; k < 6; ++k) {
      even[k] = static_cast<T>(2 * warp_tap(kTaps - 1 - 2 * k));
      odd[k] = static_cast<T>(2 * warp_tap(kTaps - 2 - 2 * k));
    }
  }
};

struct Span {  // fine samples origin .. origin + size - 1 of an axis, both even; whole: positions are modulo the period
  int64_t origin;
  int size, period;
  bool whole;
  int pixels() const { return size / 2 + 6; }
};

Span span_of(double low, double high, int size) {
  const int period = warp_period(size);
  if (std::abs(low) < kFarthest && std::abs(high) < kFarthest) {
    const int64_t origin = 2 * static_cast<int64_t>(std::floor(low / 2));
    const int64_t cells = (static_cast<int64_t>(std::floor(high)) - origin + 4) / 2 * 2;  // one to spare for rounding
    if (cells < period + 2) return {origin, static_cast<int>(cells), period, false};
  }
  return {0, period + 2, period, true};
}

template <class T, int V>
struct Lanes {
  typedef T Vec __attribute__((vector_size(V * sizeof(T))));
  typedef T Loose __attribute__((vector_size(V * sizeof(T)), aligned(alignof(T)), may_alias));
  static EEG_GAN_INLINE Vec load(const T* p) { return *reinterpret_cast<const Loose*>(p); }
  static EEG_GAN_INLINE void store(T* p, const Vec& v) { *reinterpret_cast<Loose*>(p) = v; }
};

template <class T>
struct Points {  // a row of fine output positions, the even columns first: offsets into the window, weights
  int32_t row[kFine], column_even[kFine], column_odd[kFine];
  T even[kFine], odd[kFine], down[kFine];
};

template <class T>
struct Buffers {  // scratch of one thread; grows to what its largest unit needs
  std::vector<T> staged, rows, window, image, tile;
  std::vector<int> xs, ys;
  Points<T> points;
  T sampled[kFine * 4], ring[kTaps][kTile * 4], padded[(kTile + 2 * kPad) * 4];
  T* grown(std::vector<T>& v, int64_t count) {
    if (static_cast<int64_t>(v.size()) < count) v.resize(count);
    return v.data();
  }
};

struct Tile {
  int row, column, rows, columns;
  int fine_rows() const { return 2 * rows + 2 * kMargin; }
  int half() const { return columns + kMargin; }  // fine columns of one parity
};

struct Window {
  Span x, y;
  bool direct() const { return static_cast<int64_t>(x.size) * y.size > kWindowMax; }
};

Window window_of(const WarpMap& map, const Tile& tile, int h, int w) {
  const double b[2] = {2.0 * tile.column - kMargin, 2.0 * (tile.column + tile.columns) + kMargin - 1};
  const double a[2] = {2.0 * tile.row - kMargin, 2.0 * (tile.row + tile.rows) + kMargin - 1};
  double low_x = INFINITY, high_x = -INFINITY, low_y = INFINITY, high_y = -INFINITY;
  bool odd = false;  // infinite or no number
  for (int corner = 0; corner < 4; ++corner) {
    const double u = map.xb * b[corner & 1] + map.xa * a[corner >> 1] + map.x1;
    const double v = map.yb * b[corner & 1] + map.ya * a[corner >> 1] + map.y1;
    low_x = std::min(low_x, u), high_x = std::max(high_x, u), low_y = std::min(low_y, v), high_y = std::max(high_y, v);
    odd |= !std::isfinite(u) || !std::isfinite(v);
  }
  if (odd) low_x = high_x = low_y = high_y = INFINITY;
  return {span_of(low_x, high_x, w), span_of(low_y, high_y, h)};
}

// ---- positions -----------------------------------------------------------------------------------------------------

// Splits a position of the span into an index that is safe whatever the position is, and the fraction.
template <class T>
EEG_GAN_INLINE int split(T place, bool whole, T period, int last, T& fraction) {
  place = whole ? place - period * std::floor(place / period) : place;
  T floor = static_cast<T>(last) < place ? static_cast<T>(last) : place;
  floor = floor > 0 ? floor : 0;
  const int index = static_cast<int>(floor);
  const T rest = place - static_cast<T>(index);
  fraction = rest < 0 ? T(0) : rest > 1 ? T(1) : rest;  // no number stays no number
  return index;
}

EEG_GAN_INLINE double start_of(double at, const Span& span) {
  at -= static_cast<double>(span.origin);
  return span.whole ? at - span.period * std::floor(at / span.period) : at;
}

// Indices and fractions of places first, first + step, ...
template <class T>
EEG_GAN_INLINE void split_row(T first, T step, int count, const Span& span, int32_t* index, T* fraction) {
  const T period = static_cast<T>(span.period);
  const int last = span.size - 2;
  if (span.whole) {
    EEG_GAN_INDEPENDENT
    for (int q = 0; q < count; ++q) index[q] = split(first + step * T(q), true, period, last, fraction[q]);
  } else {
    EEG_GAN_INDEPENDENT
    for (int q = 0; q < count; ++q) index[q] = split(first + step * T(q), false, period, last, fraction[q]);
  }
}

template <class T, int V>
EEG_GAN_INLINE void find_points(const WarpMap& map, const Window& window, const Tile& tile, int r, Points<T>& points) {
  const double a = 2.0 * tile.row - kMargin + r;
  const int half = tile.half(), stride = window.x.size * V, odd_at = window.x.size / 2 * V;
  for (int parity = 0; parity < 2; ++parity) {
    const double b = 2.0 * tile.column - kMargin + parity;
    const int at = parity * half;
    split_row(static_cast<T>(start_of(map.xb * b + map.xa * a + map.x1, window.x)), static_cast<T>(2 * map.xb), half,
              window.x, points.column_odd + at, points.odd + at);
    split_row(static_cast<T>(start_of(map.yb * b + map.ya * a + map.y1, window.y)), static_cast<T>(2 * map.yb), half,
              window.y, points.row + at, points.down + at);
  }
  EEG_GAN_INDEPENDENT
  for (int q = 0; q < 2 * half; ++q) {
    const int x = points.column_odd[q];
    const T right = points.odd[q], left = 1 - right;
    points.row[q] *= stride;
    points.column_even[q] = ((x + 1) >> 1) * V;
    points.column_odd[q] = odd_at + (x >> 1) * V;
    points.even[q] = x & 1 ? right : left;
    points.odd[q] = x & 1 ? left : right;
  }
}

template <class T, int V>
EEG_GAN_INLINE void gather(const T* window, int stride, const Points<T>& points, int count, T* sampled) {
  using L = Lanes<T, V>;
  for (int q = 0; q < count; ++q) {
    const T* even = window + points.row[q] + points.column_even[q];
    const T* odd = window + points.row[q] + points.column_odd[q];
    const auto upper = L::load(even) * points.even[q] + L::load(odd) * points.odd[q];
    const auto lower = L::load(even + stride) * points.even[q] + L::load(odd + stride) * points.odd[q];
    L::store(sampled + q * V, upper + (lower - upper) * points.down[q]);
  }
}

template <class T, int V>
EEG_GAN_INLINE void scatter(T* window, int stride, const Points<T>& points, int count, const T* sampled) {
  using L = Lanes<T, V>;
  for (int q = 0; q < count; ++q) {
    T *even = window + points.row[q] + points.column_even[q], *odd = window + points.row[q] + points.column_odd[q];
    const auto value = L::load(sampled + q * V), lower = value * points.down[q], upper = value - lower;
    L::store(even, L::load(even) + upper * points.even[q]);
    L::store(odd, L::load(odd) + upper * points.odd[q]);
    L::store(even + stride, L::load(even + stride) + lower * points.even[q]);
    L::store(odd + stride, L::load(odd + stride) + lower * points.odd[q]);
  }
}

// Seven pixels from first on, and their weights, for a bilinear reading of the upsampled signal.
template <class T>
EEG_GAN_INLINE void seven(double place, int size, const Filter<T>& filter, int pixels[7], T weights[7]) {
  double fraction;
  const int period = warp_period(size), j = split(place, true, static_cast<double>(period), period, fraction);
  const T next = static_cast<T>(fraction), here = 1 - next;
  for (int k = 0; k < 7; ++k) {
    const T even = k < 6 && !(j & 1) ? filter.even[k] : j & 1 && k > 0 ? filter.even[k - 1] : T(0);
    const T odd = k > 0 ? filter.odd[k - 1] : T(0);
    weights[k] = j & 1 ? here * odd + next * even : here * even + next * odd;
    pixels[k] = warp_reflected(j / 2 - 3 + k, size);
  }
}

// One row of positions straight from, or into, the image [h, w, V].
template <class T, int V, bool adjoint>
EEG_GAN_INLINE void direct_row(const WarpMap& map, const Tile& tile, int r, int h, int w, const Filter<T>& filter,
                               T* image, T* sampled) {
  using L = Lanes<T, V>;
  const double a = 2.0 * tile.row - kMargin + r;
  for (int q = 0; q < 2 * tile.half(); ++q) {
    const int j = q < tile.half() ? 2 * q : 2 * (q - tile.half()) + 1;
    const double b = 2.0 * tile.column - kMargin + j;
    int xs[7], ys[7];
    T across[7], down[7];
    seven(map.xb * b + map.xa * a + map.x1, w, filter, xs, across);
    seven(map.yb * b + map.ya * a + map.y1, h, filter, ys, down);
    typename L::Vec sum = {};
    const auto value = L::load(sampled + q * V);
    for (int y = 0; y < 7; ++y) {
      for (int x = 0; x < 7; ++x) {
        T* pixel = image + (static_cast<int64_t>(ys[y]) * w + xs[x]) * V;
        if (adjoint) L::store(pixel, L::load(pixel) + value * (down[y] * across[x]));
        else sum += L::load(pixel) * (down[y] * across[x]);
      }
    }
    if (!adjoint) L::store(sampled + q * V, sum);
  }
}

// ---- filters -------------------------------------------------------------------------------------------------------

// staged [pixels y, pixels x, V] -> window [fine y, (even fine x, odd fine x), V], across and then down.
template <class T, int V>
EEG_GAN_INLINE void upsample(const Window& window, const Filter<T>& f, const T* __restrict__ staged,
                             T* __restrict__ rows, T* __restrict__ fine) {
  const int half = window.x.size / 2 * V, stride = 2 * half, wide = window.x.pixels() * V;
  for (int p = 0; p < window.y.pixels(); ++p) {
    const T* s = staged + static_cast<int64_t>(p) * wide;
    T *even = rows + static_cast<int64_t>(p) * stride, *odd = even + half;
    EEG_GAN_INDEPENDENT
    for (int q = 0; q < half; ++q) {
      T e = 0, o = 0;
      for (int k = 0; k < 6; ++k) e += f.even[k] * s[q + k * V], o += f.odd[k] * s[q + (k + 1) * V];
      even[q] = e, odd[q] = o;
    }
  }
  for (int r = 0; r < window.y.size; ++r) {
    const T* taps = r & 1 ? f.odd : f.even;
    const T* s = rows + static_cast<int64_t>(r / 2 + (r & 1)) * stride;
    T* out = fine + static_cast<int64_t>(r) * stride;
    EEG_GAN_INDEPENDENT
    for (int q = 0; q < stride; ++q) {
      T sum = 0;
      for (int k = 0; k < 6; ++k) sum += taps[k] * s[q + k * stride];
      out[q] = sum;
    }
  }
}

// The adjoint; a fine row, between 6 pixels of zeros, is in `row` (two halves), and `zeros` is one row of them.
template <class T, int V>
EEG_GAN_INLINE void upsample_adjoint(const Window& window, const Filter<T>& f, const T* __restrict__ fine,
                                     const T* __restrict__ zeros, T* __restrict__ row, T* __restrict__ staged) {
  const int half = window.x.size / 2 * V, stride = 2 * half, wide = window.x.pixels() * V, rows = window.y.size / 2;
  T *even = row + 6 * V, *odd = even + half + 12 * V;
  std::memset(row, 0, sizeof(T) * (stride + 24 * V));
  for (int p = 0; p < window.y.pixels(); ++p) {
    const T *e[6], *o[6];
    for (int k = 0; k < 6; ++k) {
      const int i = p - k;
      e[k] = i >= 0 && i < rows ? fine + static_cast<int64_t>(2 * i) * stride : zeros;
      o[k] = i >= 1 && i <= rows ? fine + static_cast<int64_t>(2 * i - 1) * stride : zeros;
    }
    for (int parity = 0; parity < 2; ++parity) {
      T* out = parity ? odd : even;
      const int from = parity * half;
      EEG_GAN_INDEPENDENT
      for (int q = 0; q < half; ++q) {
        T sum = 0;
        for (int k = 0; k < 6; ++k) sum += f.even[k] * e[k][from + q] + f.odd[k] * o[k][from + q];
        out[q] = sum;
      }
    }
    T* out = staged + static_cast<int64_t>(p) * wide;
    EEG_GAN_INDEPENDENT
    for (int q = 0; q < wide; ++q) {
      T sum = 0;
      for (int k = 0; k < 6; ++k) sum += f.even[k] * even[q - k * V] + f.odd[k] * odd[q - (k + 1) * V];
      out[q] = sum;
    }
  }
}

// ---- a tile --------------------------------------------------------------------------------------------------------

template <class T, int V>
EEG_GAN_INLINE void warp_tile(const WarpMap& map, const Window& window, const Tile& tile, int h, int w,
                              Buffers<T>& at) {
  const Filter<T> f;
  const bool direct = window.direct();
  if (!direct) upsample<T, V>(window, f, at.staged.data(), at.rows.data(), at.window.data());
  const int half = tile.half() * V, wide = tile.columns * V;
  for (int r = 0; r < tile.fine_rows(); ++r) {
    if (direct) {
      direct_row<T, V, false>(map, tile, r, h, w, f, at.image.data(), at.sampled);
    } else {
      find_points<T, V>(map, window, tile, r, at.points);
      gather<T, V>(at.window.data(), window.x.size * V, at.points, 2 * tile.half(), at.sampled);
    }
    const T *__restrict__ even = at.sampled, *__restrict__ odd = at.sampled + half;
    T* __restrict__ narrow = at.ring[r % kTaps];
    EEG_GAN_INDEPENDENT
    for (int q = 0; q < wide; ++q) {
      T sum = 0;
      for (int k = 0; k < 6; ++k) sum += f.down[2 * k] * even[q + k * V] + f.down[2 * k + 1] * odd[q + k * V];
      narrow[q] = sum;
    }
    if (r < kTaps - 1 || r % 2 == 0) continue;
    const int i = (r - (kTaps - 1)) / 2;
    const T* rows[kTaps];
    for (int k = 0; k < kTaps; ++k) rows[k] = at.ring[(2 * i + k) % kTaps];
    T* __restrict__ out = at.tile.data() + static_cast<int64_t>(i) * wide;
    EEG_GAN_INDEPENDENT
    for (int q = 0; q < wide; ++q) {
      T sum = 0;
      for (int k = 0; k < kTaps; ++k) sum += f.down[k] * rows[k][q];
      out[q] = sum;
    }
  }
}

// tile: the gradient between kPad rows of zeros [rows + 2 kPad, columns, V]. The result is in `staged`, or in `image`.
template <class T, int V>
EEG_GAN_INLINE void warp_tile_adjoint(const WarpMap& map, const Window& window, const Tile& tile, int h, int w,
                                      Buffers<T>& at) {
  const Filter<T> f;
  const bool direct = window.direct();
  const int half = tile.half() * V, wide = tile.columns * V, stride = window.x.size * V;
  if (!direct) std::memset(at.window.data(), 0, sizeof(T) * static_cast<int64_t>(window.y.size) * stride);
  std::memset(at.padded, 0, sizeof(at.padded));
  T* narrow = at.padded + kPad * V;
  for (int r = 0; r < tile.fine_rows(); ++r) {
    const T* __restrict__ s = at.tile.data() + static_cast<int64_t>(r / 2 + kPad) * wide;
    const int odd_row = r & 1;
    EEG_GAN_INDEPENDENT
    for (int q = 0; q < wide; ++q) {
      T sum = 0;
      for (int k = 0; k < 6; ++k) sum += f.down[2 * k + odd_row] * s[q - k * wide];
      narrow[q] = sum;
    }
    T *__restrict__ even = at.sampled, *__restrict__ odd = at.sampled + half;
    EEG_GAN_INDEPENDENT
    for (int q = 0; q < half; ++q) {
      T e = 0, o = 0;
      for (int k = 0; k < 6; ++k) e += f.down[2 * k] * narrow[q - k * V], o += f.down[2 * k + 1] * narrow[q - k * V];
      even[q] = e, odd[q] = o;
    }
    if (direct) {
      direct_row<T, V, true>(map, tile, r, h, w, f, at.image.data(), at.sampled);
    } else {
      find_points<T, V>(map, window, tile, r, at.points);
      scatter<T, V>(at.window.data(), stride, at.points, 2 * tile.half(), at.sampled);
    }
  }
  if (!direct) {
    T* row = at.rows.data();
    upsample_adjoint<T, V>(window, f, at.window.data(), row + stride + 24 * V, row, at.staged.data());
  }
}

#define EEG_GAN_WARP_CLONES(T, V, name)                                                                       \
  EEG_GAN_CLONES void name(const WarpMap& map, const Window& window, const Tile& tile, int h, int w, bool adjoint, \
                           Buffers<T>& at) {                                                                  \
    if (adjoint) warp_tile_adjoint<T, V>(map, window, tile, h, w, at);                                        \
    else warp_tile<T, V>(map, window, tile, h, w, at);                                                        \
  }
EEG_GAN_WARP_CLONES(float, 1, run_float_1)
EEG_GAN_WARP_CLONES(float, 4, run_float_4)
EEG_GAN_WARP_CLONES(double, 1, run_double_1)
EEG_GAN_WARP_CLONES(double, 4, run_double_4)

void run_tile(int V, const WarpMap& map, const Window& window, const Tile& tile, int h, int w, bool adjoint,
              Buffers<float>& at) {
  (V == 1 ? run_float_1 : run_float_4)(map, window, tile, h, w, adjoint, at);
}
void run_tile(int V, const WarpMap& map, const Window& window, const Tile& tile, int h, int w, bool adjoint,
              Buffers<double>& at) {
  (V == 1 ? run_double_1 : run_double_4)(map, window, tile, h, w, adjoint, at);
}

}  // namespace
}  // namespace eeg_gan
