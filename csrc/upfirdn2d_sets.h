// upfirdn2d_lanes.h and upfirdn2d_planes.h for each instruction set, and the choice between them. Included by
// upfirdn2d.cpp alone.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "upfirdn2d_rows.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace eeg_gan {
namespace {

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
#define ORDERED(v) v
namespace lanes4 {
#include "upfirdn2d_set.h"
}
#ifdef EEG_GAN_SETS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
#define STREAM(p, v) _mm256_stream_ps(p, __m256(v))
#define INDEX Index8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
// within the halves of a vector, as AVX2 does it by one instruction instead of three; sums are put in order at the end
#define EVEN 0, 2, 8, 10, 4, 6, 12, 14
#define ODD 1, 3, 9, 11, 5, 7, 13, 15
#define ORDERED(v) SHUFFLE(v, v, 0, 1, 4, 5, 2, 3, 6, 7)
namespace lanes8 {
#include "upfirdn2d_set.h"
}
#pragma GCC target("avx512f,avx2,fma")
#define LANES 16
#define STREAM(p, v) _mm512_stream_ps(p, __m512(v))
#define INDEX Index16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define ORDERED(v) v
namespace lanes16 {
#include "upfirdn2d_set.h"
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

}  // namespace
}  // namespace eeg_gan
