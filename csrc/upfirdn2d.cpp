// upfirdn2d on the CPU: each output row is a vertical filter over input rows into a buffer, then a horizontal one.
// Polyphase, so inserted zeros are never touched; a 2-D filter of rank 1 is found and runs as two 1-D ones.
#include "upfirdn2d.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "check.h"
#include "upfirdn2d_rows.h"
#include "upfirdn2d_sets.h"

namespace eeg_gan {
namespace {

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
           aligned && plan.planes * ay.out * ax.out * plan.pixel * 4 > KEPT_IN_CACHES};
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
