// upfirdn2d on a GPU. All accumulate in float32 (float64 for float64), sum taps in a fixed order and use no atomics.
//   patches     4x4 taps, up or down by two or neither, [N, C, H, W]: tiles in shared memory
//   pixels      the same for [N, H, W, C]: each thread 16 bytes of channels of 2x2 outputs, neighbours by the cache
//   separable   1-D taps, the same factors, both layouts: two passes within a tile in shared memory
//   gather      everything else: one output per thread
#include "upfirdn2d.h"

#include "launch.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int64_t MOST_BLOCKS = 1 << 30;  // a grid's x axis holds 2^31 - 1; the kernels stride over what is beyond
constexpr int SHARED_LIMIT = 48 << 10;

template <class T> struct Type { using Computing = float; };
template <> struct Type<double> { using Computing = double; };

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ void narrow(float& to, float v) { to = v; }
__device__ __forceinline__ void narrow(double& to, double v) { to = v; }
__device__ __forceinline__ void narrow(__nv_bfloat16& to, float v) { to = __float2bfloat16_rn(v); }
__device__ __forceinline__ void narrow(__half& to, float v) { to = __float2half_rn(v); }

template <class T, int N> struct alignas(sizeof(T) * N) Pack { T v[N]; };

__device__ __forceinline__ int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Tap k of an axis in the order of correlation.
template <class A>
__device__ __forceinline__ A tap(const UpfirdnJob& job, int64_t ky, int64_t kx) {
  const A* f = static_cast<const A*>(job.f);
  const int64_t y = job.flip ? ky : job.ay.taps - 1 - ky, x = job.flip ? kx : job.ax.taps - 1 - kx;
  return (job.separable ? f[y] * f[x] : f[y * job.ax.taps + x]) * A(job.gain);
}

template <class T>
__global__ void gather(UpfirdnJob job) {
  using A = typename Type<T>::Computing;
  const T* x = static_cast<const T*>(job.x);
  T* y = static_cast<T*>(job.y);
  const UpfirdnAxis ax = job.ax, ay = job.ay;
  const int64_t total = job.n * job.c * ay.out * ax.out;
  for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < total; i += int64_t(gridDim.x) * THREADS) {
    int64_t rest = i, channel = 0;
    if (job.channels_last) channel = rest % job.c, rest /= job.c;
    const int64_t mx = rest % ax.out, my = rest / ax.out % ay.out, plane = rest / ax.out / ay.out;
    const int64_t sx = mx * ax.down - ax.pad, sy = my * ay.down - ay.pad;
    const int64_t left = max(int64_t(0), -floor_div(-sx, ax.up)), top = max(int64_t(0), -floor_div(-sy, ay.up));
    const int64_t step = job.channels_last ? job.c : 1;
    const T* image = x + plane * ay.size * ax.size * step + channel;
    A sum = 0;
    for (int64_t v = top; v < ay.size && v * ay.up - sy < ay.taps; ++v)
      for (int64_t u = left; u < ax.size && u * ax.up - sx < ax.taps; ++u)
        sum += tap<A>(job, v * ay.up - sy, u * ax.up - sx) * widen(image[(v * ax.size + u) * step]);
    narrow(y[i], sum);
  }
}

// For the kernels below. Outputs are counted from -shift, so that (with up = 2) even ones start at an input.
struct Tiles {
  int64_t across, down, total;  // number of tiles
  int32_t width, height;        // outputs of a tile
  int32_t in_width, in_height;  // the inputs under it
  int32_t channels, pitch;      // channels of a tile; values between its rows of inputs
  int32_t shift_x, shift_y;
  int32_t vector_out;           // whether rows of the output may be stored 4 at a time
};

template <int UP, int DOWN>
__device__ __forceinline__ int64_t first_input(const UpfirdnAxis& axis, int64_t m, int shift) {
  return UP == 2 ? (m - axis.pad - shift) / 2 : m * DOWN - axis.pad;  // m and pad + shift are even for UP = 2
}

// Values [first, first + count) of a row of x, zero outside [0, size), as numbers in shared memory. 16-byte loads at
// whatever alignment: of each aligned piece that meets the row, what belongs to it is kept.
template <class T, class A>
__device__ __forceinline__ void load_rows(const UpfirdnJob& job, const Tiles& tiles, A* to, int64_t plane, int64_t row0,
                                          int64_t column0) {
  constexpr int N = 16 / sizeof(T);
  const T* x = static_cast<const T*>(job.x);
  const T* end = x + job.n * job.c * job.ay.size * job.ax.size;
  const int pieces = (tiles.in_width + 2 * N - 2) / N;  // enough at any alignment
  for (int i = threadIdx.x; i < pieces * tiles.in_height; i += THREADS) {
    const int r = i / pieces, piece = i - r * pieces;
    const int64_t row = row0 + r;
    const bool inside = row >= 0 && row < job.ay.size;
    const T* start = x + (plane * job.ay.size + (inside ? row : 0)) * job.ax.size + column0;
    const int skew = int(reinterpret_cast<uintptr_t>(start) / sizeof(T) % N);
    const T* from = start - skew + piece * N;
    const int column = piece * N - skew;
    Pack<T, N> pack;
    const bool whole = inside && from >= x && from + N <= end;
    if (whole) pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (column + k < 0 || column + k >= tiles.in_width) continue;
      const bool real = inside && column0 + column + k >= 0 && column0 + column + k < job.ax.size;
      A value = 0;
      if (real) value = widen(whole ? pack.v[k] : from[k]);
      to[r * tiles.pitch + column + k] = value;
    }
  }
}

// Four outputs in a row for each of ROWS rows per thread; a warp spans 64 columns of two rows, or 32 of four.
template <class T, int UP, int DOWN>
__global__ void __launch_bounds__(THREADS) patches(UpfirdnJob job, Tiles tiles) {
  using A = typename Type<T>::Computing;
  constexpr int ROWS = DOWN == 2 ? 1 : 4;
  constexpr int IN = UP == 2 ? 4 : 3 * DOWN + 4;              // inputs under four outputs
  constexpr int IN_ROWS = UP == 2 ? 4 : (ROWS - 1) * DOWN + 4;
  EEG_GAN_DYNAMIC_SHARED(A, tile);
  A w[16];
#pragma unroll
  for (int k = 0; k < 16; ++k) w[k] = tap<A>(job, k / 4, k % 4);
  const int lanes = tiles.width / 4, lane = threadIdx.x % lanes, line = threadIdx.x / lanes;
  T* y = static_cast<T*>(job.y);
  for (int64_t unit = blockIdx.x; unit < tiles.total; unit += gridDim.x) {
    const int64_t plane = unit / (tiles.across * tiles.down), place = unit - plane * tiles.across * tiles.down;
    const int64_t ty = place / tiles.across, tx = place - ty * tiles.across;
    const int64_t my = ty * tiles.height, mx = tx * tiles.width;
    load_rows<T, A>(job, tiles, tile, plane, first_input<UP, DOWN>(job.ay, my, tiles.shift_y),
                    first_input<UP, DOWN>(job.ax, mx, tiles.shift_x));
    __syncthreads();
    const A* corner = tile + line * ROWS * DOWN / UP * tiles.pitch + lane * 4 * DOWN / UP;
    A sums[ROWS][4] = {};
#pragma unroll
    for (int i = 0; i < IN_ROWS; ++i) {
      A in[IN];
#pragma unroll
      for (int j = 0; j < IN; ++j) in[j] = corner[i * tiles.pitch + j];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const int ky = i * UP - r * DOWN;
        if (ky < 0 || ky > 3) continue;
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
          for (int j = 0; j < IN; ++j) {
            const int kx = j * UP - m * DOWN;
            if (kx >= 0 && kx <= 3) sums[r][m] += w[ky * 4 + kx] * in[j];
          }
      }
    }
    const int64_t column = mx + lane * 4 - tiles.shift_x;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int64_t row = my + line * ROWS + r - tiles.shift_y;
      if (row < 0 || row >= job.ay.out) continue;
      T* out = y + (plane * job.ay.out + row) * job.ax.out + column;
      Pack<T, 4> pack;
#pragma unroll
      for (int m = 0; m < 4; ++m) narrow(pack.v[m], sums[r][m]);
      if (tiles.vector_out && column + 4 <= job.ax.out) {
        *reinterpret_cast<Pack<T, 4>*>(out) = pack;
      } else {
#pragma unroll
        for (int m = 0; m < 4; ++m)
          if (column + m >= 0 && column + m < job.ax.out) out[m] = pack.v[m];
      }
    }
    __syncthreads();
  }
}

// N channels of 2x2 outputs per thread; threads of a block lie channels first, then across, then down, and the block
// goes down four such steps, so that the rows that steps share are still in the first cache.
template <class T, int N, int UP, int DOWN>
__global__ void __launch_bounds__(THREADS) pixels(UpfirdnJob job, Tiles tiles) {
  using A = typename Type<T>::Computing;
  constexpr int IN = UP == 2 ? 3 : DOWN + 4;
  A w[16];
#pragma unroll
  for (int k = 0; k < 16; ++k) w[k] = tap<A>(job, k / 4, k % 4);
  const int groups = tiles.channels / N, lines = THREADS / groups;
  const int group = threadIdx.x % groups, line = threadIdx.x / groups;
  if (line >= lines) return;
  const int wide = tiles.width / 2, px = line % wide, py = line / wide, steps = tiles.height / (lines / wide * 2);
  if (py >= lines / wide) return;
  const T* x = static_cast<const T*>(job.x);
  T* y = static_cast<T*>(job.y);
  const int tx = blockIdx.x % unsigned(tiles.across), ty = blockIdx.x / unsigned(tiles.across);
  const int height = int(job.ay.size), width = int(job.ax.size);  // no side has 2^31 pixels
  const int64_t channel = int64_t(blockIdx.z) * tiles.channels + group * N;
  if (channel >= job.c) return;
  for (int64_t n = blockIdx.y; n < job.n; n += gridDim.y) {
    const int mx = tx * tiles.width + px * 2, column0 = int(first_input<UP, DOWN>(job.ax, mx, tiles.shift_x));
    const T* image = x + n * job.ay.size * job.ax.size * job.c + channel;
        for (int step = 0; step < steps; ++step) {
      const int my = ty * tiles.height + (step * (lines / wide) + py) * 2;
      const int row0 = int(first_input<UP, DOWN>(job.ay, my, tiles.shift_y));
      if (my - tiles.shift_y >= job.ay.out || mx - tiles.shift_x >= job.ax.out) continue;
      A sums[2][2][N] = {};
#pragma unroll
      for (int i = 0; i < IN; ++i) {
        const int row = row0 + i;
        Pack<T, N> in[IN];
#pragma unroll
        for (int j = 0; j < IN; ++j) {
          const int column = column0 + j;
          in[j] = Pack<T, N>{};
          if (unsigned(row) < unsigned(height) && unsigned(column) < unsigned(width))
            in[j] = *reinterpret_cast<const Pack<T, N>*>(image + (int64_t(row) * width + column) * job.c);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int j = 0; j < IN; ++j) {
              const int ky = i * UP - r * DOWN, kx = j * UP - m * DOWN;
              if (ky < 0 || ky > 3 || kx < 0 || kx > 3) continue;
#pragma unroll
              for (int k = 0; k < N; ++k) sums[r][m][k] += w[ky * 4 + kx] * widen(in[j].v[k]);
            }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const int row = my + r - tiles.shift_y, column = mx + m - tiles.shift_x;
          if (row < 0 || row >= job.ay.out || column < 0 || column >= job.ax.out) continue;
          Pack<T, N> pack;
#pragma unroll
          for (int k = 0; k < N; ++k) narrow(pack.v[k], sums[r][m][k]);
          *reinterpret_cast<Pack<T, N>*>(y + ((n * job.ay.out + row) * job.ax.out + column) * job.c + channel) = pack;
        }
    }
  }
}

// A tile of inputs, filtered along x into a second array, then along y; `channels` lie innermost in both.
template <class T, int UP, int DOWN>
__global__ void __launch_bounds__(THREADS) separable(UpfirdnJob job, Tiles tiles) {
  using A = typename Type<T>::Computing;
  EEG_GAN_DYNAMIC_SHARED(A, shared);
  const int taps = int(job.ax.taps), c = tiles.channels, in_row = tiles.in_width * c, row = tiles.width * c;
  A* w = shared;
  A* in = w + taps;
  A* middle = in + tiles.in_height * in_row;
  const A* f = static_cast<const A*>(job.f);
  for (int k = threadIdx.x; k < taps; k += THREADS) w[k] = f[job.flip ? k : taps - 1 - k];
  const int64_t sections = job.channels_last ? (job.c + c - 1) / c : 1, stored = job.channels_last ? job.c : 1;
  const T* x = static_cast<const T*>(job.x);
  T* y = static_cast<T*>(job.y);
  for (int64_t unit = blockIdx.x; unit < tiles.total; unit += gridDim.x) {
    const int64_t tx = unit % tiles.across, ty = unit / tiles.across % tiles.down;
    const int64_t rest = unit / tiles.across / tiles.down, channel0 = rest % sections * c, plane = rest / sections;
    const int64_t my = ty * tiles.height, mx = tx * tiles.width;
    const int64_t row0 = first_input<UP, DOWN>(job.ay, my, tiles.shift_y);
    const int64_t column0 = first_input<UP, DOWN>(job.ax, mx, tiles.shift_x);
    const T* image = x + plane * job.ay.size * job.ax.size * stored + channel0;
    __syncthreads();  // the array of the unit before is still read
    for (int i = threadIdx.x; i < tiles.in_height * in_row; i += THREADS) {
      const int r = i / in_row, j = i - r * in_row, k = j % c;
      const int64_t v = row0 + r, u = column0 + j / c;
      const bool real = v >= 0 && v < job.ay.size && u >= 0 && u < job.ax.size && channel0 + k < stored;
      in[i] = real ? widen(image[(v * job.ax.size + u) * stored + k]) : A(0);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < tiles.in_height * row; i += THREADS) {
      const int r = i / row, j = i - r * row, m = j / c, k0 = UP == 2 ? m % 2 : 0;
      const A* from = in + r * in_row + (m * DOWN + k0) / UP * c + j % c;
      A sum = 0;
      for (int k = k0; k < taps; k += UP, from += c) sum += w[k] * *from;
      middle[i] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < tiles.height * row; i += THREADS) {
      const int r = i / row, j = i - r * row, k0 = UP == 2 ? r % 2 : 0;
      const int64_t v = my + r - tiles.shift_y, u = mx + j / c - tiles.shift_x;
      if (v < 0 || v >= job.ay.out || u < 0 || u >= job.ax.out || channel0 + j % c >= stored) continue;
      const A* from = middle + (r * DOWN + k0) / UP * row + j;
      A sum = 0;
      for (int k = k0; k < taps; k += UP, from += row) sum += w[k] * *from;
      narrow(y[((plane * job.ay.out + v) * job.ax.out + u) * stored + channel0 + j % c], sum * A(job.gain));
    }
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many inputs lie under `outputs` (an even number, if up is 2) neighbours.
int32_t inputs_under(int32_t outputs, int up, int down, int64_t taps) {
  return int32_t(((outputs - 1) * down + taps - 1) / up + 1);
}

Tiles tiles_of(const UpfirdnJob& job, int up, int down, int32_t width, int32_t height, int32_t channels,
               int64_t depth) {
  Tiles t{};
  t.width = width, t.height = height, t.channels = channels;
  t.shift_x = up == 2 ? int32_t(job.ax.pad & 1) : 0, t.shift_y = up == 2 ? int32_t(job.ay.pad & 1) : 0;
  t.across = ceil_div(job.ax.out + t.shift_x, width), t.down = ceil_div(job.ay.out + t.shift_y, height);
  t.total = t.across * t.down * depth;
  t.in_width = inputs_under(width, up, down, job.ax.taps), t.in_height = inputs_under(height, up, down, job.ay.taps);
  return t;
}

unsigned blocks(int64_t units) { return unsigned(units < MOST_BLOCKS ? units : MOST_BLOCKS); }

template <class T, int UP, int DOWN>
int launch_patches(const UpfirdnJob& job, cudaStream_t stream) {
  using A = typename Type<T>::Computing;
  const int32_t width = job.ax.out > 32 ? 64 : 32, rows = DOWN == 2 ? 1 : 4;
  Tiles t = tiles_of(job, UP, DOWN, width, THREADS / (width / 4) * rows, 1, job.n * job.c);
  t.in_width += UP == 2 ? 1 : 0;  // a thread reads four columns, of which it needs three to four
  t.in_height += UP == 2 ? 1 : 0;
  t.pitch = (t.in_width + 3) / 4 * 4;
  const bool even = job.ax.out % 4 == 0 && t.shift_x == 0;
  t.vector_out = even && reinterpret_cast<uintptr_t>(job.y) % (4 * sizeof(T)) == 0;
  const size_t bytes = size_t(t.pitch) * t.in_height * sizeof(A);
  EEG_GAN_LAUNCH((patches<T, UP, DOWN>), dim3(blocks(t.total)), dim3(THREADS), bytes, stream, job, t);
  return int(cudaGetLastError());
}

template <class T, int N, int UP, int DOWN>
int launch_pixels(const UpfirdnJob& job, cudaStream_t stream) {
  int32_t groups = 1;
  while (groups < 32 && groups * 2 * N <= job.c) groups *= 2;
  const int32_t lines = THREADS / groups, wide = lines >= 64 ? 16 : 8;
  const int32_t channels = groups * N, deep = lines / wide;
  const Tiles t = tiles_of(job, UP, DOWN, wide * 2, deep * 2 * 4, channels, job.n * ceil_div(job.c, channels));
  // Three axes instead of one that is divided: 64-bit division is a call, over which registers would be spilled.
  const dim3 grid(unsigned(t.across * t.down), unsigned(job.n < 65535 ? job.n : 65535),
                  unsigned(ceil_div(job.c, channels)));
  EEG_GAN_LAUNCH((pixels<T, N, UP, DOWN>), grid, dim3(THREADS), 0, stream, job, t);
  return int(cudaGetLastError());
}

template <class T, int UP, int DOWN>
int launch_separable(const UpfirdnJob& job, cudaStream_t stream, bool& fits) {
  using A = typename Type<T>::Computing;
  int32_t channels = 1;
  while (job.channels_last && channels < 16 && channels < job.c) channels *= 2;
  const int32_t side = job.channels_last ? 8 : 32;
  const Tiles t = tiles_of(job, UP, DOWN, side, side, channels,
                           job.channels_last ? job.n * ceil_div(job.c, channels) : job.n * job.c);
  const int64_t values = int64_t(t.in_height) * (t.in_width + side) * channels + job.ax.taps;
  fits = values * int64_t(sizeof(A)) <= SHARED_LIMIT;
  if (!fits) return 0;
  EEG_GAN_LAUNCH((separable<T, UP, DOWN>), dim3(blocks(t.total)), dim3(THREADS), values * sizeof(A), stream, job, t);
  return int(cudaGetLastError());
}

template <class T, int UP, int DOWN>
bool launch_fast(const UpfirdnJob& job, cudaStream_t stream, int& code) {
  if (job.ax.up != UP || job.ay.up != UP || job.ax.down != DOWN || job.ay.down != DOWN) return false;
  if (job.separable) {
    bool fits = false;
    if (job.ax.taps <= 64) code = launch_separable<T, UP, DOWN>(job, stream, fits);
    return fits;
  }
  if (job.ax.taps != 4 || job.ay.taps != 4) return false;
  if (!job.channels_last) return code = launch_patches<T, UP, DOWN>(job, stream), true;
  constexpr int N = 16 / sizeof(T);
  const uintptr_t both = reinterpret_cast<uintptr_t>(job.x) | reinterpret_cast<uintptr_t>(job.y);
  const bool vectors = job.c % N == 0 && both % 16 == 0;
  code = vectors ? launch_pixels<T, N, UP, DOWN>(job, stream) : launch_pixels<T, 1, UP, DOWN>(job, stream);
  return true;
}

template <class T>
int launch(const UpfirdnJob& job, cudaStream_t stream) {
  int code = 0;
  if (launch_fast<T, 1, 1>(job, stream, code) || launch_fast<T, 2, 1>(job, stream, code) ||
      launch_fast<T, 1, 2>(job, stream, code))
    return code;
  const int64_t units = ceil_div(job.n * job.c * job.ay.out * job.ax.out, THREADS);
  EEG_GAN_LAUNCH((gather<T>), dim3(blocks(units)), dim3(THREADS), 0, stream, job);
  return int(cudaGetLastError());
}

}  // namespace

extern "C" int eeg_gan_upfirdn2d(const UpfirdnJob* job, void* stream) {
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (job->dtype) {
    case EEG_GAN_FLOAT32: return launch<float>(*job, s);
    case EEG_GAN_FLOAT64: return launch<double>(*job, s);
    case EEG_GAN_BFLOAT16: return launch<__nv_bfloat16>(*job, s);
    default: return launch<__half>(*job, s);
  }
}
