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
#include <vector>

#include "affine_warp_tiles.h"
#include "check.h"

namespace eeg_gan {
namespace {

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
