// What the CPU and CUDA kernels of the affine warp share: the taps, the map between fine positions, the launchers.
//
// Fine position j of an axis lies at pixel (j - 1/2) / 2. Upsampling gives fine sample j of the endlessly reflected
// image from 6 pixels (even taps for one parity of j, odd taps for the other); output pixel i is the sum over k of
// taps[k] times fine output position 2 i - 5 + k, which is read bilinearly at a fine position of the image.
#pragma once
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define EEG_GAN_BOTH __host__ __device__ __forceinline__
#else
#define EEG_GAN_BOTH inline
#endif

namespace eeg_gan {

constexpr int kTaps = 12, kMargin = kTaps / 2 - 1;

// The low-pass of the sym6 wavelet over the root of 2: sums to 1. Downsampling uses it as it is; upsampling is the
// adjoint of that with twice the gain.
EEG_GAN_BOTH constexpr double warp_tap(int k) {
  constexpr double taps[kTaps] = {0.015404109327027373,  0.0034907120842174702, -0.11799011114819057,
                                  -0.048311742585633,    0.4910559419267466,    0.787641141030194,
                                  0.3379294217276218,    -0.07263752278646252,  -0.021060292512300564,
                                  0.04472490177066578,   0.0017677118642428036, -0.007800708325034148};
  return taps[k] * 0.70710678118654752440;
}

struct WarpShape {  // of the tensor that is read (x or the gradient) and of the one that is written; both [n, c, h, w]
  int64_t n, c;
  int h, w;
  int64_t read[4], written[4];  // strides in elements
};

// Where fine output position (column b, row a) reads: u = xb * b + xa * a + x1 across, v = yb * b + ya * a + y1 down.
struct WarpMap {
  double xb, xa, x1, yb, ya, y1;
};

EEG_GAN_BOTH int warp_period(int size) { return size > 1 ? 4 * (size - 1) : 2; }  // in fine samples

template <class I>
EEG_GAN_BOTH int warp_reflected(I pixel, int size) {
  const int period = size > 1 ? 2 * (size - 1) : 1;
  if (pixel <= -size || pixel > period) pixel %= period;  // rare, and slow on a GPU
  int place = static_cast<int>(pixel < 0 ? -pixel : pixel);
  place = place == period && size == 1 ? 0 : place;
  return place < size ? place : period - place;
}

// The translation is reduced in double precision before anything is added to it: far ones stay exact.
template <class M>
EEG_GAN_BOTH WarpMap warp_map(const M* matrix, int h, int w) {
  const double m00 = matrix[0], m01 = matrix[1], m10 = matrix[3], m11 = matrix[4];
  const double b = -0.5 - (w - 1), a = -0.5 - (h - 1);
  const double x1 = fmod(2.0 * matrix[2], static_cast<double>(warp_period(w)));
  const double y1 = fmod(2.0 * matrix[5], static_cast<double>(warp_period(h)));
  return {m00, m01, m00 * b + m01 * a + x1 + (w - 0.5), m10, m11, m10 * b + m11 * a + y1 + (h - 0.5)};
}

}  // namespace eeg_gan

// dtype: 0 float32, 1 float64, 2 bfloat16, 3 float16; the matrix is float64 for float64 and float32 otherwise.
// They return a cudaError_t.
extern "C" {
int eeg_gan_affine_warp(const eeg_gan::WarpShape* shape, int dtype, const void* x, const void* matrix, void* y,
                        void* stream);
int eeg_gan_affine_warp_adjoint(const eeg_gan::WarpShape* shape, int dtype, const void* grad, const void* matrix,
                                void* x, void* stream);
}
