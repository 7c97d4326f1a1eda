// CPU kernels of the affine warp and of its adjoint; see affine_warp.h for the definition.
//
// A unit is one tile of output pixels of up to 4 channels of one sample (adjoint: all tiles, one after another, so that
// scattering has one owner). The part of the upsampled reflected image that the tile can read, its window, is made in
// per-thread scratch that fits a cache, with the channels side by side: one position serves 4 channels by vector loads.
// A window holds its even columns before its odd ones, so that every filter is a loop over contiguous numbers.
// Where the window would be very large (a strongly shrunk large image), pixels are read directly, 49 per position.
#include "affine_warp.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "check.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-trapping-math", "no-math-errno")  // else comparisons and floor are not vectorised
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

// ---- memory in and out ---------------------------------------------------------------------------------------------

// Pixels [ys, xs] of `channels` planes into [rows, columns, V]; absent channels are zeros.
template <class S, class T>
void stage(const S* in, const int64_t strides[4], const int* ys, int rows, const int* xs, int columns, int channels,
           int V, T* out) {
  if (channels < V) std::fill_n(out, static_cast<int64_t>(rows) * columns * V, T(0));
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < channels; ++v) {
      const S* from = in + ys[r] * strides[2] + v * strides[1];
      T* to = out + static_cast<int64_t>(r) * columns * V + v;
      for (int q = 0; q < columns; ++q) to[static_cast<int64_t>(q) * V] = static_cast<T>(from[xs[q] * strides[3]]);
    }
  }
}

template <class S, class T>
void unstage(const T* in, int rows, int columns, int channels, int V, S* out, const int64_t strides[4]) {
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < channels; ++v) {
      const T* from = in + static_cast<int64_t>(r) * columns * V + v;
      S* to = out + r * strides[2] + v * strides[1];
      for (int q = 0; q < columns; ++q) to[q * strides[3]] = static_cast<S>(from[static_cast<int64_t>(q) * V]);
    }
  }
}

void count_up(std::vector<int>& places, int first, int count) {
  places.resize(count);
  for (int i = 0; i < count; ++i) places[i] = first + i;
}

void reflect_up(std::vector<int>& places, const Span& span, int size) {
  places.resize(span.pixels());
  for (int i = 0; i < span.pixels(); ++i) places[i] = warp_reflected(span.origin / 2 - 3 + i, size);
}

Tile tile_of(int index, int h, int w) {
  const int across = (w + kTile - 1) / kTile, row = index / across * kTile, column = index % across * kTile;
  return {row, column, std::min(kTile, h - row), std::min(kTile, w - column)};
}

template <class T>
void reserve(Buffers<T>& at, const WarpShape& shape, const Window& window, int V) {
  const int64_t zeros = 2 * (static_cast<int64_t>(window.x.size) + 24) * V;  // what the adjoint needs of `rows`
  if (!window.direct()) {
    at.grown(at.staged, static_cast<int64_t>(window.y.pixels()) * window.x.pixels() * V);
    at.grown(at.rows, std::max(zeros, static_cast<int64_t>(window.y.pixels()) * window.x.size * V));
    at.grown(at.window, static_cast<int64_t>(window.y.size) * window.x.size * V);
  }
  at.grown(at.tile, static_cast<int64_t>(kTile + 2 * kPad) * kTile * V);
}

template <class S, class T>
void forward_unit(const WarpShape& s, int64_t unit, const S* x, const T* matrix, S* y, Buffers<T>& at) {
  const int tiles = ((s.h + kTile - 1) / kTile) * ((s.w + kTile - 1) / kTile), V = s.c == 1 ? 1 : 4;
  const int64_t groups = (s.c + 3) / 4, n = unit / (groups * tiles), first = unit / tiles % groups * 4;
  const int channels = static_cast<int>(std::min<int64_t>(4, s.c - first));
  const Tile tile = tile_of(static_cast<int>(unit % tiles), s.h, s.w);
  const WarpMap map = warp_map(matrix + n * 6, s.h, s.w);
  const Window window = window_of(map, tile, s.h, s.w);
  reserve(at, s, window, V);
  const S* in = x + n * s.read[0] + first * s.read[1];
  if (window.direct()) {
    count_up(at.xs, 0, s.w), count_up(at.ys, 0, s.h);
    at.grown(at.image, static_cast<int64_t>(s.h) * s.w * V);
  } else {
    reflect_up(at.xs, window.x, s.w), reflect_up(at.ys, window.y, s.h);
  }
  T* out = window.direct() ? at.image.data() : at.staged.data();
  const int rows = static_cast<int>(at.ys.size()), columns = static_cast<int>(at.xs.size());
  stage(in, s.read, at.ys.data(), rows, at.xs.data(), columns, channels, V, out);
  run_tile(V, map, window, tile, s.h, s.w, false, at);
  S* to = y + n * s.written[0] + first * s.written[1] + tile.row * s.written[2] + tile.column * s.written[3];
  unstage(at.tile.data(), tile.rows, tile.columns, channels, V, to, s.written);
}

template <class S, class T>
void adjoint_unit(const WarpShape& s, int64_t unit, const S* grad, const T* matrix, S* x, Buffers<T>& at) {
  const int tiles = ((s.h + kTile - 1) / kTile) * ((s.w + kTile - 1) / kTile), V = s.c == 1 ? 1 : 4;
  const int64_t groups = (s.c + 3) / 4, n = unit / groups, first = unit % groups * 4;
  const int channels = static_cast<int>(std::min<int64_t>(4, s.c - first));
  const WarpMap map = warp_map(matrix + n * 6, s.h, s.w);
  T* image = at.grown(at.image, static_cast<int64_t>(s.h) * s.w * V);
  std::fill_n(image, static_cast<int64_t>(s.h) * s.w * V, T(0));
  for (int index = 0; index < tiles; ++index) {
    const Tile tile = tile_of(index, s.h, s.w);
    const Window window = window_of(map, tile, s.h, s.w);
    reserve(at, s, window, V);
    const int wide = tile.columns * V;
    std::fill_n(at.tile.data(), kPad * wide, T(0));
    std::fill_n(at.tile.data() + static_cast<int64_t>(tile.rows + kPad) * wide, kPad * wide, T(0));
    std::fill_n(at.rows.data(), std::min<int64_t>(at.rows.size(), 2 * (int64_t{window.x.size} + 24) * V), T(0));
    count_up(at.xs, tile.column, tile.columns), count_up(at.ys, tile.row, tile.rows);
    stage(grad + n * s.read[0] + first * s.read[1], s.read, at.ys.data(), tile.rows, at.xs.data(), tile.columns,
          channels, V, at.tile.data() + kPad * wide);
    run_tile(V, map, window, tile, s.h, s.w, true, at);
    if (window.direct()) continue;
    reflect_up(at.xs, window.x, s.w), reflect_up(at.ys, window.y, s.h);
    const T* from = at.staged.data();
    for (int place_y : at.ys) {
      T* row = image + static_cast<int64_t>(place_y) * s.w * V;
      for (int place_x : at.xs) {
        for (int v = 0; v < V; ++v) row[place_x * V + v] += *from++;
      }
    }
  }
  unstage(image, s.h, s.w, channels, V, x + n * s.written[0] + first * s.written[1], s.written);
}

template <class S, class T>
void run(const WarpShape& s, bool adjoint, const Tensor& in, const Tensor& matrix, const Tensor& out) {
  const int64_t tiles = int64_t{(s.h + kTile - 1) / kTile} * ((s.w + kTile - 1) / kTile), groups = (s.c + 3) / 4;
  const int64_t units = s.n * groups * (adjoint ? 1 : tiles);
  const int64_t pixels = int64_t{s.h} * s.w / (adjoint ? 1 : tiles);
  const S* from = static_cast<const S*>(in.data_ptr());
  const T* how = static_cast<const T*>(matrix.data_ptr());
  S* to = static_cast<S*>(out.data_ptr());
  torch::stable::parallel_for(0, units, std::max<int64_t>(1, 256 / pixels), [&](int64_t begin, int64_t end) {
    Buffers<T> buffers;
    for (int64_t unit = begin; unit < end; ++unit) {
      if (adjoint) adjoint_unit<S, T>(s, unit, from, how, to, buffers);
      else forward_unit<S, T>(s, unit, from, how, to, buffers);
    }
  });
}

// ---- the operators -------------------------------------------------------------------------------------------------

void check(const char* op, const char* name, const Tensor& x, const Tensor& matrix) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": ", name, " must be [N, C, H, W], but it has ", x.dim(), " dimensions");
  STD_TORCH_CHECK(x.numel() == 0 || std::max(x.size(2), x.size(3)) <= 1 << 20, op, ": ", name,
                  " has a side over 2^20 px");
  STD_TORCH_CHECK(matrix.dim() == 3 && matrix.size(0) == x.size(0) && matrix.size(1) == 2 && matrix.size(2) == 3, op,
                  ": matrix must be [N, 2, 3], one for each of the ", x.size(0), " samples of ", name);
  STD_TORCH_CHECK(matrix.is_contiguous(), op, ": matrix must be contiguous");
  const bool wide = x.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(matrix.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float), op,
                  ": matrix must be float64 for a float64 ", name, " and float32 for any other");
  STD_TORCH_CHECK(matrix.device() == x.device(), op, ": matrix must be on the device of ", name);
}

WarpShape shape_of(const Tensor& in, const Tensor& out) {
  WarpShape shape{in.size(0), in.size(1), static_cast<int>(in.size(2)), static_cast<int>(in.size(3)), {}, {}};
  for (int i = 0; i < 4; ++i) shape.read[i] = in.stride(i), shape.written[i] = out.stride(i);
  return shape;
}

Tensor on_cpu(const char* op, const char* name, const Tensor& x, const Tensor& matrix, bool adjoint) {
  check(op, name, x, matrix);
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  const WarpShape shape = shape_of(x, y);
  switch (x.scalar_type()) {
    case ScalarType::Float: run<float, float>(shape, adjoint, x, matrix, y); break;
    case ScalarType::Double: run<double, double>(shape, adjoint, x, matrix, y); break;
    case ScalarType::BFloat16: run<torch::headeronly::BFloat16, float>(shape, adjoint, x, matrix, y); break;
    case ScalarType::Half: run<torch::headeronly::Half, float>(shape, adjoint, x, matrix, y); break;
    default: STD_TORCH_CHECK(false, op, ": ", name, " must be float32, float64, bfloat16 or float16");
  }
  return y;
}

Tensor warp_cpu(const Tensor& x, const Tensor& matrix) { return on_cpu("affine_warp", "x", x, matrix, false); }
Tensor adjoint_cpu(const Tensor& grad, const Tensor& matrix) {
  return on_cpu("affine_warp_adjoint", "grad", grad, matrix, true);
}

#ifdef EEG_GAN_CUDA
Tensor on_cuda(const char* op, const char* name, const Tensor& x, const Tensor& matrix, bool adjoint) {
  check(op, name, x, matrix);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  int dtype = -1;
  switch (x.scalar_type()) {
    case ScalarType::Float: dtype = 0; break;
    case ScalarType::Double: dtype = 1; break;
    case ScalarType::BFloat16: dtype = 2; break;
    case ScalarType::Half: dtype = 3; break;
    default: STD_TORCH_CHECK(false, op, ": ", name, " must be float32, float64, bfloat16 or float16");
  }
  const WarpShape shape = shape_of(x, y);
  const auto launch = adjoint ? eeg_gan_affine_warp_adjoint : eeg_gan_affine_warp;
  check_launch(op, launch(&shape, dtype, x.data_ptr(), matrix.data_ptr(), y.data_ptr(), current_stream(x)));
  return y;
}

Tensor warp_cuda(const Tensor& x, const Tensor& matrix) { return on_cuda("affine_warp", "x", x, matrix, false); }
Tensor adjoint_cuda(const Tensor& grad, const Tensor& matrix) {
  return on_cuda("affine_warp_adjoint", "grad", grad, matrix, true);
}
#endif

}  // namespace
}  // namespace eeg_gan

STABLE_TORCH_LIBRARY_IMPL(eeg_gan, CPU, m) {
  m.impl("affine_warp", TORCH_BOX(&eeg_gan::warp_cpu));
  m.impl("affine_warp_adjoint", TORCH_BOX(&eeg_gan::adjoint_cpu));
}

#ifdef EEG_GAN_CUDA
STABLE_TORCH_LIBRARY_IMPL(eeg_gan, CUDA, m) {
  m.impl("affine_warp", TORCH_BOX(&eeg_gan::warp_cuda));
  m.impl("affine_warp_adjoint", TORCH_BOX(&eeg_gan::adjoint_cuda));
}
#endif
