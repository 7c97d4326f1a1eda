// One job of upfirdn2d, the same for CPU and CUDA. Images are dense: [N, C, H, W] or, channels_last, [N, H, W, C].
#pragma once
#include <stdint.h>

enum { EEG_GAN_FLOAT32 = 0, EEG_GAN_FLOAT64 = 1, EEG_GAN_BFLOAT16 = 2, EEG_GAN_FLOAT16 = 3 };

struct UpfirdnAxis {
  int64_t size, out;  // pixels of input and output
  int64_t up, down;
  int64_t pad;    // before the first pixel; that behind the last is implied by `out`
  int64_t taps;
};

struct UpfirdnJob {
  const void* x;
  const void* f;  // float64 where x is, else float32; dense [taps], along both axes, or [taps of y, taps of x]
  void* y;
  int32_t dtype;
  int32_t channels_last, separable, flip;
  double gain;  // on the whole
  int64_t n, c;
  struct UpfirdnAxis ax, ay;
};

// Per axis, with z the input with up - 1 zeros behind each pixel, zero outside:
//   out[m] = gain * sum_k f[flip ? k : taps - 1 - k] * z[m * down + k - pad]

#ifdef __cplusplus
extern "C" {
#endif
// Starts the kernels on a cudaStream_t; returns the cudaError_t of the launch.
int eeg_gan_upfirdn2d(const struct UpfirdnJob* job, void* stream);
#ifdef __cplusplus
}
#endif
