// upfirdn2d on the CPU: each output row is a vertical filter over input rows into a buffer, then a horizontal one.
// Polyphase, so inserted zeros are never touched; a 2-D filter of rank 1 is found and runs as two 1-D ones.
#include "upfirdn2d.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace eeg_gan {
namespace {

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

EEG_GAN_INLINE float load(float v) { return v; }
EEG_GAN_INLINE double load(double v) { return v; }
EEG_GAN_INLINE float load(BFloat16 v) { return std::bit_cast<float>(uint32_t(v.bits) << 16); }
EEG_GAN_INLINE float load(Float16 v) {  // without branches, so that loops vectorise without the instruction too
  const uint32_t w = uint32_t(v.bits) << 16, twice = w + w;
  const float normal = std::bit_cast<float>((twice >> 4) + (0xE0u << 23)) * 0x1p-112f;
  const float subnormal = std::bit_cast<float>((twice >> 17) | (126u << 23)) - 0.5f;
  const uint32_t bits = std::bit_cast<uint32_t>(twice < (1u << 27) ? subnormal : normal);
  return std::bit_cast<float>((w & 0x80000000u) | bits);
}
EEG_GAN_INLINE void store(float* p, float v) { *p = v; }
EEG_GAN_INLINE void store(double* p, double v) { *p = v; }
EEG_GAN_INLINE void store(BFloat16* p, float v) {  // to the nearest, ties to even
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  p->bits = uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}
EEG_GAN_INLINE void store(Float16* p, float v) {  // to the nearest, ties to even, by adding a number of the right size
  const uint32_t w = std::bit_cast<uint32_t>(v), sign = (w >> 16) & 0x8000u, magnitude = w & 0x7FFFFFFFu;
  const float scaled = (std::bit_cast<float>(magnitude) * 0x1p112f) * 0x1p-110f;
  const uint32_t exponent = std::max((w + w) & 0xFF000000u, 0x71000000u);
  const uint32_t bits = std::bit_cast<uint32_t>(scaled + std::bit_cast<float>((exponent >> 1) + 0x07800000u));
  const uint32_t half = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu);
  p->bits = uint16_t(sign | (magnitude > 0x7F800000u ? 0x7E00u : half));
}

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

// What the kernels of upfirdn2d_lanes.h and upfirdn2d_planes.h are told.
struct LanesJob {
  const float* x;
  float* out;
  const float* zeros;  // an input row of zeros
  int64_t c, height, width, out_height, out_width;  // c is 1 for planes
  int up, down;
  const int64_t *first_x, *phase_x, *first_y, *phase_y;  // as in Steps
  const float *wx[2], *wy[2];                            // taps of each phase
  bool past_caches;
};

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int Index4 __attribute__((vector_size(16)));
typedef int Index8 __attribute__((vector_size(32)));
typedef int Index16 __attribute__((vector_size(64)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, INDEX{__VA_ARGS__})
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EEG_GAN_SETS
#define STREAM(p, v) _mm_stream_ps(p, __m128(v))
#define FENCE() _mm_sfence()
#else
#define STREAM(p, v) store(p, v)
#define FENCE() ((void)0)
#endif
#define LANES 4
#define INDEX Index4
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
namespace lanes4 {
#include "upfirdn2d_lanes.h"
#include "upfirdn2d_planes.h"
}
#ifdef EEG_GAN_SETS
#undef LANES
#undef STREAM
#undef INDEX
#undef LOW
#undef HIGH
#undef EVEN
#undef ODD
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
#define STREAM(p, v) _mm256_stream_ps(p, __m256(v))
#define INDEX Index8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
namespace lanes8 {
#include "upfirdn2d_lanes.h"
#include "upfirdn2d_planes.h"
}
#undef LANES
#undef STREAM
#undef INDEX
#undef LOW
#undef HIGH
#undef EVEN
#undef ODD
#pragma GCC target("avx512f,avx2,fma")
#define LANES 16
#define STREAM(p, v) _mm512_stream_ps(p, __m512(v))
#define INDEX Index16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
namespace lanes16 {
#include "upfirdn2d_lanes.h"
#include "upfirdn2d_planes.h"
}
#pragma GCC pop_options

void run_lanes(const LanesJob& job, const Units& units) {
  static const bool avx512 = __builtin_cpu_supports("avx512f"), avx2 = __builtin_cpu_supports("avx2");
  // a row of a plane shorter than a step's results is better made by smaller steps
  const int64_t step = job.c > 1 ? 16 : job.out_width / job.up;
  const auto f = avx512 && step >= 16 ? (job.c > 1 ? lanes16::run : lanes16::run_planes)
               : avx2 && step >= 8    ? (job.c > 1 ? lanes8::run : lanes8::run_planes)
                                      : (job.c > 1 ? lanes4::run : lanes4::run_planes);
  f(job, units);
}
#else
void run_lanes(const LanesJob& job, const Units& units) {
  job.c > 1 ? lanes4::run(job, units) : lanes4::run_planes(job, units);
}
#endif

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
template <class A>
using Kernel = void (*)(const Plan<A>&, const Units&);

// The job for upfirdn2d_lanes.h or upfirdn2d_planes.h, if it is one; `zeros` becomes its row of zeros.
bool lanes_job(const Plan<float>& plan, std::vector<float>& zeros, LanesJob& lanes) {
  const UpfirdnJob& job = plan.job;
  const UpfirdnAxis &ax = job.ax, &ay = job.ay;
  if (job.dtype != EEG_GAN_FLOAT32 || (plan.pixel % 16 && plan.pixel > 1) || plan.wy.empty()) return false;
  if (ax.taps != 4 || ay.taps != 4 || ax.up != ay.up || ax.down != ay.down || ax.up * ax.down > 2) return false;
  zeros.assign(plan.row, 0.0f);
  float* out = static_cast<float*>(job.y);
  const bool aligned = reinterpret_cast<uintptr_t>(out) % 64 == 0;
  lanes = {static_cast<const float*>(job.x), out, zeros.data(), plan.pixel, ay.size, ax.size, ay.out, ax.out,
           int(ax.up), int(ax.down), plan.sx.first.data(), plan.sx.phase.data(), plan.sy.first.data(),
           plan.sy.phase.data(), {}, {},
           aligned && plan.planes * (ay.size * plan.row + ay.out * ax.out * plan.pixel) * 4 > KEPT_IN_CACHES};
  for (int64_t p = 0; p < ax.up; ++p) lanes.wx[p] = plan.wx[0][p].data(), lanes.wy[p] = plan.wy[p].data();
  return true;
}

// The taps in the order of correlation, times the gain, as columns and rows if the rank is one (rows empty if not).
struct Taps {
  std::vector<double> x, y;

  template <class F>
  Taps(const UpfirdnJob& job, const F* f) {
    const int64_t kx = job.ax.taps, ky = job.ay.taps;
    const auto back = [&](int64_t k, int64_t n) { return job.flip ? k : n - 1 - k; };
    if (job.separable) {
      for (int64_t k = 0; k < kx; ++k) x.push_back(f[back(k, kx)]);
      for (int64_t k = 0; k < ky; ++k) y.push_back(f[back(k, ky)] * job.gain);
      return;
    }
    for (int64_t i = 0; i < ky; ++i)
      for (int64_t j = 0; j < kx; ++j) x.push_back(f[back(i, ky) * kx + back(j, kx)]);
    int64_t pivot = 0;
    for (int64_t k = 1; k < kx * ky; ++k)
      if (std::abs(x[k]) > std::abs(x[pivot])) pivot = k;
    const double largest = x[pivot], tolerance = std::abs(largest) * (sizeof(F) == 8 ? 1e-15 : 3e-7);
    const int64_t row = pivot / kx, column = pivot % kx;
    bool one = largest != 0 && std::isfinite(largest);
    for (int64_t i = 0; i < ky && one; ++i)
      for (int64_t j = 0; j < kx; ++j)
        one = one && std::abs(x[i * kx + j] - x[i * kx + column] * x[row * kx + j] / largest) <= tolerance;
    if (!one) {
      for (double& v : x) v *= job.gain;
      return;
    }
    for (int64_t i = 0; i < ky; ++i) y.push_back(x[i * kx + column] / largest * job.gain);
    x = std::vector<double>(x.begin() + row * kx, x.begin() + (row + 1) * kx);
  }
};

constexpr int64_t TILE = 2048;   // values of a row at a time, so that the buffers stay in the first cache
constexpr int64_t GRAIN = 16384;  // outputs that are worth a thread

template <class A>
void execute(const UpfirdnJob& job, Kernel<A> kernel) {
  Plan<A> plan(job);
  const Taps taps(job, static_cast<const A*>(job.f));
  const int64_t kx = job.ax.taps, ky = job.ay.taps;
  if (taps.y.empty()) {
    for (int64_t k = 0; k < ky; ++k) plan.wx.push_back(phases<A>(taps.x.data() + k * kx, kx, job.ax.up));
  } else {
    plan.wx.push_back(phases<A>(taps.x.data(), kx, job.ax.up));
    plan.wy = phases<A>(taps.y.data(), ky, job.ay.up);
  }
  const int64_t c = job.channels_last ? job.c : 1;
  plan.pixel = c, plan.row = job.ax.size * c, plan.planes = job.channels_last ? job.n : job.n * job.c;
  plan.tile = std::min(job.ax.out, std::max<int64_t>(8, TILE / c / std::max<int64_t>(1, job.ax.down)));
  for (int64_t k = 0; k < plan.sy.longest; ++k) plan.rows_apart.push_back(k * plan.row);
  for (int64_t k = 0; k < std::max(plan.sx.longest, kx); ++k) {
    plan.pixels_apart.push_back(k * c);
    plan.decimated.push_back(k % job.ax.down * (plan.tile + kx) * c + k / job.ax.down * c);
  }
  const int64_t per_row = job.ax.out * c;
  Units all{0, 0, std::clamp<int64_t>((GRAIN / per_row + 1) / 2 * 2, 1, job.ay.out), 0};
  all.per_plane = (job.ay.out + all.rows - 1) / all.rows;
  const int64_t grain = std::max<int64_t>(1, GRAIN / (all.rows * per_row));
  LanesJob lanes{};
  std::vector<float> zeros;
  bool fits = false;
  if constexpr (std::is_same_v<A, float>) fits = lanes_job(plan, zeros, lanes);
  torch::stable::parallel_for(0, plan.planes * all.per_plane, grain, [&](int64_t begin, int64_t end) {
    const Units own{begin, end, all.rows, all.per_plane};
    fits ? run_lanes(lanes, own) : kernel(plan, own);
  });
}

void on_cpu(const UpfirdnJob& job) {
  switch (job.dtype) {
    case EEG_GAN_FLOAT32: return execute<float>(job, run<float, float>);
    case EEG_GAN_FLOAT64: return execute<double>(job, run<double, double>);
    case EEG_GAN_BFLOAT16: return execute<float>(job, run<BFloat16, float>);
    default: return execute<float>(job, run<Float16, float>);
  }
}
#ifdef EEG_GAN_CUDA
void on_cuda(const UpfirdnJob& job, const Tensor& x) {
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  check_launch("upfirdn2d", eeg_gan_upfirdn2d(&job, current_stream(x)));
}
#endif

int32_t type_code(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return EEG_GAN_FLOAT32;
    case ScalarType::Double: return EEG_GAN_FLOAT64;
    case ScalarType::BFloat16: return EEG_GAN_BFLOAT16;
    case ScalarType::Half: return EEG_GAN_FLOAT16;
    default: STD_TORCH_CHECK(false, "upfirdn2d: x is float32, float64, bfloat16 or float16");
  }
  return -1;
}

bool is_channels_last(const Tensor& x) {
  int64_t expected = 1;
  for (int64_t axis : {1, 3, 2, 0}) {
    if (x.size(axis) == 1) continue;
    if (x.stride(axis) != expected) return false;
    expected *= x.size(axis);
  }
  return true;
}

UpfirdnAxis axis_of(const char* name, int64_t size, int64_t up, int64_t down, int64_t before, int64_t behind,
                    int64_t taps) {
  STD_TORCH_CHECK(up >= 1 && down >= 1, "upfirdn2d: up and down are at least 1");
  const int64_t room = size * up + before + behind - taps;
  STD_TORCH_CHECK(room / down < (int64_t(1) << 31) - 1, "upfirdn2d: the result would have 2^31 pixels or more along ", name);
  STD_TORCH_CHECK(size >= 1 && taps >= 1 && room >= 0, "upfirdn2d: ", taps, " taps do not fit along ", name, " into ",
                  size, " px with up ", up, " and padding (", before, ", ", behind, ")");
  return {size, room / down + 1, up, down, before, taps};
}

Tensor upfirdn2d(const Tensor& x, const Tensor& f, int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y,
                 int64_t pad_x0, int64_t pad_x1, int64_t pad_y0, int64_t pad_y1, bool flip, double gain) {
  STD_TORCH_CHECK(x.dim() == 4, "upfirdn2d: x is [N, C, H, W]; got ", x.dim(), " axes");
  STD_TORCH_CHECK(f.dim() == 1 || f.dim() == 2, "upfirdn2d: f has one or two axes; got ", f.dim());
  const int32_t type = type_code(x);
  STD_TORCH_CHECK(f.scalar_type() == (type == EEG_GAN_FLOAT64 ? ScalarType::Double : ScalarType::Float),
                  "upfirdn2d: f is float32, or float64 where x is");
  STD_TORCH_CHECK(f.is_cuda() == x.is_cuda() && f.get_device_index() == x.get_device_index(),
                  "upfirdn2d: f and x are on one device");
  // The layout of x decides that of the result; views that are neither dense nor channels_last are copied first.
  const bool last = !x.is_contiguous() && x.stride(1) == 1;
  using torch::headeronly::MemoryFormat;
  const MemoryFormat format = last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const bool dense = last ? is_channels_last(x) : x.is_contiguous();
  const Tensor image = dense ? x : torch::stable::contiguous(x, format);
  const Tensor taps = f.is_contiguous() ? f : torch::stable::contiguous(f);
  UpfirdnJob job{};
  job.dtype = type, job.channels_last = last, job.separable = f.dim() == 1, job.flip = flip, job.gain = gain;
  job.n = x.size(0), job.c = x.size(1);
  job.ax = axis_of("x", x.size(3), up_x, down_x, pad_x0, pad_x1, f.size(f.dim() - 1));
  job.ay = axis_of("y", x.size(2), up_y, down_y, pad_y0, pad_y1, f.size(0));
  const int64_t shape[] = {job.n, job.c, job.ay.out, job.ax.out};
  Tensor y = torch::stable::empty({shape, 4}, x.scalar_type(), std::nullopt, x.device(), std::nullopt, format);
  if (y.numel() == 0) return y;
  job.x = image.const_data_ptr(), job.f = taps.const_data_ptr(), job.y = y.mutable_data_ptr();
#ifdef EEG_GAN_CUDA
  if (x.is_cuda()) return on_cuda(job, x), y;
#endif
  on_cpu(job);
  return y;
}

}  // namespace
}  // namespace eeg_gan

STABLE_TORCH_LIBRARY_IMPL(eeg_gan, CPU, m) { m.impl("upfirdn2d", TORCH_BOX(&eeg_gan::upfirdn2d)); }
#ifdef EEG_GAN_CUDA
STABLE_TORCH_LIBRARY_IMPL(eeg_gan, CUDA, m) { m.impl("upfirdn2d", TORCH_BOX(&eeg_gan::upfirdn2d)); }
#endif
