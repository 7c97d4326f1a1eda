// Convolution with 3x3 taps at equal size on the CPU, float32 and channels_last, by Winograd's minimal filtering
// (Lavin & Gray 2016, arXiv 1509.09308): tiles of 4x4 outputs by 36 products instead of 144, and the same for the
// weight's gradient. The gradient of the input is the convolution with turned weights.
//
// Sums are cut into blocks whose bounds depend on the shape alone, and each tile is computed alike wherever it lies, so
// that results depend neither on the number of threads nor on what else is in the batch.
#include <algorithm>
#include <memory>
#include <vector>

#include "check.h"

namespace eeg_gan {
namespace {

constexpr int64_t BLOCK = 32;   // tiles whose values at all points stay in the second cache
constexpr int64_t SUPER = 128;  // tiles of the weight's gradient between two sums; a multiple of BLOCK

struct Conv3x3 {
  const float *x, *weight, *dy;
  float* y;
  int64_t h, w, c, o, tiles_y, tiles_x, tiles;
};

struct Loops {
  int lanes;
  void (*transform_weights)(const Conv3x3&, int64_t, float*);
  void (*forward_block)(const Conv3x3&, const float*, int64_t, float*, float*);
  void (*points_of_inputs)(const Conv3x3&, int64_t, int64_t, int64_t, float*);
  void (*points_of_gradients)(const Conv3x3&, int64_t, int64_t, int64_t, float*);
  void (*add_products)(const Conv3x3&, const float*, const float*, int64_t, float*);
  void (*write_weights)(const Conv3x3&, const float*, int64_t);
};

#define LOOPS(n) \
  { n, transform_weights, forward_block, points_of_inputs, points_of_gradients, add_products, write_weights }
#define LANES 4
namespace lanes4 {
#include "conv3x3_lanes.h"
constexpr Loops loops = LOOPS(4);
}
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
namespace lanes8 {
#include "conv3x3_lanes.h"
constexpr Loops loops = LOOPS(8);
}
#pragma GCC target("avx512f,avx2,fma")
#define LANES 16
namespace lanes16 {
#include "conv3x3_lanes.h"
constexpr Loops loops = LOOPS(16);
}
#pragma GCC pop_options

const Loops& best() {
  static const bool avx512 = __builtin_cpu_supports("avx512f");
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return avx512 ? lanes16::loops : avx2 ? lanes8::loops : lanes4::loops;
}
#else
const Loops& best() { return lanes4::loops; }
#endif

constexpr int64_t CHANNELS = 32;  // numbers of channels are multiples of it

using Scratch = std::unique_ptr<float[]>;
Scratch scratch(int64_t count) { return Scratch(new float[count]); }

bool is_channels_last(const Tensor& x) {
  return x.stride(1) == 1 && x.stride(3) == x.size(1) && x.stride(2) == x.size(1) * x.size(3) &&
         x.stride(0) == x.size(1) * x.size(2) * x.size(3);
}

void check(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == ScalarType::Float, op, ": images are float32 [N, C, H, W]");
  STD_TORCH_CHECK(x.size(1) % CHANNELS == 0 && x.size(1) > 0, op, ": channels are a multiple of 32; got ", x.size(1));
}

Conv3x3 job_of(const Tensor& x, int64_t outputs) {
  Conv3x3 job{};
  job.h = x.size(2), job.w = x.size(3), job.c = x.size(1), job.o = outputs;
  job.tiles_y = (job.h + 3) / 4, job.tiles_x = (job.w + 3) / 4, job.tiles = x.size(0) * job.tiles_y * job.tiles_x;
  return job;
}

Tensor images(const Tensor& x) {
  return is_channels_last(x) ? x : torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast);
}
const float* values(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

Tensor conv3x3(const Tensor& x, const Tensor& weight) {
  check("conv3x3", x);
  STD_TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == ScalarType::Float && weight.size(1) == x.size(1) &&
                      weight.size(0) % CHANNELS == 0 && weight.size(2) == 3 && weight.size(3) == 3,
                  "conv3x3: the weight is float32 [O, C, 3, 3] with O a multiple of 32 and C as x has");
  const Tensor image = images(x), taps = weight.is_contiguous() ? weight : torch::stable::contiguous(weight);
  const int64_t shape[] = {x.size(0), weight.size(0), x.size(2), x.size(3)};
  Tensor y = torch::stable::empty({shape, 4}, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                  torch::headeronly::MemoryFormat::ChannelsLast);
  if (y.numel() == 0) return y;
  Conv3x3 job = job_of(x, weight.size(0));
  job.x = values(image), job.weight = values(taps), job.y = static_cast<float*>(y.mutable_data_ptr());
  const Loops& loops = best();
  const int64_t wide = 2 * loops.lanes;
  const Scratch u = scratch(36 * job.c * job.o);
  for_each_unit(job.o / wide, 1, [&](int64_t part) {
    loops.transform_weights(job, part * wide, u.get() + part * 36 * job.c * wide);
  });
  torch::stable::parallel_for(0, (job.tiles + BLOCK - 1) / BLOCK, 1, [&](int64_t begin, int64_t end) {
    const Scratch v = scratch(36 * BLOCK * job.c), m = scratch(36 * BLOCK * wide);
    std::fill_n(v.get(), 36 * BLOCK * job.c, 0.0f);  // rows past the last tile are multiplied too
    for (int64_t block = begin; block < end; ++block) loops.forward_block(job, u.get(), block, v.get(), m.get());
  });
  return y;
}

Tensor conv3x3_weight(const Tensor& x, const Tensor& dy) {
  check("conv3x3_weight", x);
  check("conv3x3_weight", dy);
  STD_TORCH_CHECK(x.size(0) == dy.size(0) && x.size(2) == dy.size(2) && x.size(3) == dy.size(3),
                  "conv3x3_weight: x and dy have the same images and pixels");
  const Tensor image = images(x), gradient = images(dy);
  const int64_t shape[] = {dy.size(1), x.size(1), 3, 3};
  Tensor weight = torch::stable::empty({shape, 4}, x.scalar_type(), std::nullopt, x.device());
  Conv3x3 job = job_of(x, dy.size(1));
  job.x = values(image), job.dy = values(gradient), job.y = static_cast<float*>(weight.mutable_data_ptr());
  const Loops& loops = best();
  const int64_t room = std::min(job.tiles, SUPER);
  const Scratch sums = scratch(36 * job.c * job.o), v = scratch(36 * SUPER * job.c), z = scratch(36 * SUPER * job.o);
  std::fill_n(sums.get(), 36 * job.c * job.o, 0.0f);
  for (int64_t first = 0; first < job.tiles; first += room) {
    const int64_t count = std::min(room, job.tiles - first), parts = (count + BLOCK - 1) / BLOCK;
    for_each_unit(2 * parts, 1, [&](int64_t unit) {
      const int64_t from = unit / 2 * BLOCK, n = std::min(BLOCK, count - from);
      unit % 2 ? loops.points_of_gradients(job, first, from, n, z.get())
               : loops.points_of_inputs(job, first, from, n, v.get());
    });
    for_each_unit(36, 1, [&](int64_t p) {
      loops.add_products(job, v.get() + p * SUPER * job.c, z.get() + p * SUPER * job.o, count,
                         sums.get() + p * job.c * job.o);
    });
  }
  for_each_unit(job.c, 8, [&](int64_t k) { loops.write_weights(job, sums.get(), k); });
  return weight;
}

}  // namespace
}  // namespace eeg_gan

STABLE_TORCH_LIBRARY_IMPL(eeg_gan, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&eeg_gan::conv3x3));
  m.impl("conv3x3_weight", TORCH_BOX(&eeg_gan::conv3x3_weight));
}
