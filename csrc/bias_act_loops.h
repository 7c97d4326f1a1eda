// The loops of bias_act on the CPU, over a chunk that lies in the first-level cache. Included by bias_act.cpp alone.
#pragma once
#include <algorithm>
#include <type_traits>

#include "bias_act.h"
#include "check.h"
#include "half.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace eeg_gan {
namespace {

constexpr int64_t CHUNK = 2048;  // elements: 8 kB in each of up to four streams

using ActFloats = ActNumbers<float>;
using ActDoubles = ActNumbers<double>;

#define EEG_GAN_EACH_ACT(act, F) \
  switch (act) {                 \
    case RELU: F(RELU); break;   \
    case LRELU: F(LRELU); break; \
    case TANH: F(TANH); break;   \
    case SIGMOID: F(SIGMOID); break;   \
    case ELU: F(ELU); break;     \
    case SOFTPLUS: F(SOFTPLUS); break; \
    default: F(SWISH);           \
  }

template <int ACT, class T>
EEG_GAN_INLINE void forward_loop(bool one, const T* __restrict x, const T* __restrict b, T* __restrict y, int64_t n,
                                 const ActNumbers<T> f) {
  if (one) {
    const T same = *b;
    for (int64_t i = 0; i < n; ++i) y[i] = bias_act_forward<ACT>(x[i], same, f);
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = bias_act_forward<ACT>(x[i], b[i], f);
  }
}

template <int ACT, bool BY_X, class T>
EEG_GAN_INLINE void backward_loop(const T* __restrict dy, const T* __restrict ref, const T* __restrict b,
                                  T* __restrict dx, int64_t n, const ActNumbers<T> f) {
  for (int64_t i = 0; i < n; ++i) dx[i] = bias_act_backward<ACT, BY_X>(dy[i], ref[i], BY_X ? b[i] : T(0), f);
}

template <int ACT, bool BY_X, class T>
EEG_GAN_INLINE void double_loop(const T* __restrict v, const T* __restrict dy, const T* __restrict ref,
                                const T* __restrict b, T* __restrict gdy, T* __restrict gref, int64_t n,
                                const ActNumbers<T> f) {
  for (int64_t i = 0; i < n; ++i) {
    T second;
    gdy[i] = bias_act_double_backward<ACT, BY_X>(v[i], dy[i], ref[i], BY_X ? b[i] : T(0), f, &second);
    gref[i] = second;
  }
}

#define FORWARD(A) forward_loop<A>(one, x, b, y, n, f)
#define BACKWARD(A) by_x ? backward_loop<A, true>(dy, ref, b, dx, n, f) : backward_loop<A, false>(dy, ref, b, dx, n, f)
#define DOUBLE(A)                                                       \
  by_x ? double_loop<A, true>(v, dy, ref, b, gdy, gref, n, f)           \
       : double_loop<A, false>(v, dy, ref, b, gdy, gref, n, f)

EEG_GAN_CLONES void forward_run(int act, bool one, const float* x, const float* b, float* y, int64_t n,
                                const ActFloats& f) {
  EEG_GAN_EACH_ACT(act, FORWARD)
}
void forward_run(int act, bool one, const double* x, const double* b, double* y, int64_t n, const ActDoubles& f) {
  EEG_GAN_EACH_ACT(act, FORWARD)
}
EEG_GAN_CLONES void backward_run(int act, bool by_x, const float* dy, const float* ref, const float* b, float* dx,
                                 int64_t n, const ActFloats& f) {
  EEG_GAN_EACH_ACT(act, BACKWARD)
}
void backward_run(int act, bool by_x, const double* dy, const double* ref, const double* b, double* dx, int64_t n,
                  const ActDoubles& f) {
  EEG_GAN_EACH_ACT(act, BACKWARD)
}
EEG_GAN_CLONES void double_run(int act, bool by_x, const float* v, const float* dy, const float* ref, const float* b,
                               float* gdy, float* gref, int64_t n, const ActFloats& f) {
  EEG_GAN_EACH_ACT(act, DOUBLE)
}
void double_run(int act, bool by_x, const double* v, const double* dy, const double* ref, const double* b, double* gdy,
                double* gref, int64_t n, const ActDoubles& f) {
  EEG_GAN_EACH_ACT(act, DOUBLE)
}

// --- Half types are widened and narrowed chunk by chunk.

EEG_GAN_CLONES void widen(const BFloat16* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}
EEG_GAN_CLONES void widen(const Float16* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}
EEG_GAN_CLONES void narrow(const float* from, BFloat16* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(&to[i], from[i]);
}
EEG_GAN_CLONES void narrow(const float* from, Float16* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(&to[i], from[i]);
}

template <class T>
struct Computing { using Type = float; };
template <>
struct Computing<double> { using Type = double; };

// A chunk in the computing type: itself, or a copy in `buffer`.
template <class T, class C>
const C* chunk_of(const T* from, C* buffer, int64_t n) {
  if constexpr (std::is_same_v<T, C>) return from;
  else {
    widen(from, buffer, n);
    return buffer;
  }
}

// Copies past the caches, and fetches meanwhile what lies as far behind `next` and `also`, if they are given.
void stream_out(const void* from, void* to, int64_t bytes, const void* next, const void* also) {
#if defined(__SSE2__)
  if ((uintptr_t(to) | uintptr_t(bytes)) % 16 == 0) {
    const auto* p = static_cast<const __m128i*>(from);
    auto* q = static_cast<__m128i*>(to);
    for (int64_t i = 0; i < bytes / 16; ++i) {
      _mm_stream_si128(q + i, _mm_load_si128(p + i));
      if (i % 4) continue;
      if (next) _mm_prefetch(static_cast<const char*>(next) + bytes + i * 16, _MM_HINT_T1);
      if (also) _mm_prefetch(static_cast<const char*>(also) + bytes + i * 16, _MM_HINT_T1);
    }
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}
void end_of_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// --- Sums

template <class C>
EEG_GAN_INLINE C sum_loop(const C* v, int64_t n) {
  constexpr int LANES = 32;  // independent sums, so that the compiler may use vectors
  C lanes[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; ++j) lanes[j] += v[i + j];
  C rest = 0;
  for (; i < n; ++i) rest += v[i];
  for (int width = LANES / 2; width; width /= 2)
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  return lanes[0] + rest;
}
EEG_GAN_CLONES float sum_of(const float* v, int64_t n) { return sum_loop(v, n); }
double sum_of(const double* v, int64_t n) { return sum_loop(v, n); }

template <class C>
EEG_GAN_INLINE void add_rows_loop(const C* __restrict v, int64_t rows, int64_t width, C* __restrict row,
                                  double* __restrict sums) {
  if (rows == 1) {
    for (int64_t i = 0; i < width; ++i) sums[i] += v[i];
    return;
  }
  for (int64_t i = 0; i < width; ++i) row[i] = v[i];
  for (int64_t r = 1; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) row[i] += v[r * width + i];
  for (int64_t i = 0; i < width; ++i) sums[i] += row[i];
}
EEG_GAN_CLONES void add_rows(const float* v, int64_t rows, int64_t width, float* row, double* sums) {
  add_rows_loop(v, rows, width, row, sums);
}
void add_rows(const double* v, int64_t rows, int64_t width, double* row, double* sums) {
  add_rows_loop(v, rows, width, row, sums);
}

}  // namespace
}  // namespace eeg_gan
