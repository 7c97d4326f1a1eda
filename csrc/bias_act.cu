// bias_act on CUDA: one elementwise kernel for y, for dx and for the second derivatives, and a second kernel that adds
// up the sums per channel which the first one left per block; always in the same order, so without atomics.
//
// A thread goes through vectors of 16 bytes at a fixed step within one channel (or, where channels are innermost, within
// one column of them). So it needs one division at its start and none per element, and keeps its sums in registers.
// Up to four vectors per stream are read before the first is used: with full occupancy that is more than the bandwidth
// times the latency of an H100 (about 16 kB per multiprocessor).

#include "launch.cuh"

#include "bias_act.h"

namespace eeg_gan {
namespace {

constexpr int THREADS = 256, WARP = 32;
constexpr int PLANE_VECTORS = 8;   // per thread, in a part of a plane
constexpr int ROW_BLOCKS = 2048;   // at most, where channels are innermost

template <class T>
struct Wide { using Type = float; };
template <>
struct Wide<double> { using Type = double; };

__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ double widened(double x) { return x; }
__device__ __forceinline__ float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widened(__half x) { return __half2float(x); }
__device__ __forceinline__ void narrowed(float x, float* to) { *to = x; }
__device__ __forceinline__ void narrowed(double x, double* to) { *to = x; }
__device__ __forceinline__ void narrowed(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrowed(float x, __half* to) { *to = __float2half_rn(x); }

template <class T, int V>
struct alignas(sizeof(T) * V) Vector {
  T at[V];
};

// How threads share the tensor. Planes: `lanes` threads go through each part of each plane [inner]. Rows (inner == 1):
// each thread has V columns and every `slots`-th row of its block's rows.
struct Sharing {
  int64_t outer, channels, inner;
  int by_rows;
  int lanes;              // threads per part of a plane, a power of two; or columns of V per block
  int slots;              // parts per block; or rows at a time
  int64_t vectors;        // of V per plane, or per row
  int64_t parts, length;  // parts per plane and their vectors; or column tiles per row, and rows per block
  int64_t blocks;
  int threads;
  int64_t partial_rows;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether vectors of V elements never cross a channel's border.
inline bool fits(const BiasActLayout& l, int v) { return (l.inner == 1 ? l.channels : l.inner) % v == 0; }

inline Sharing sharing_of(const BiasActLayout& l, int v) {
  Sharing s{l.outer, l.channels, l.inner, l.inner == 1};
  if (s.by_rows) {
    s.vectors = l.channels / v;
    s.lanes = int(s.vectors < THREADS ? s.vectors : THREADS);
    s.slots = THREADS / s.lanes;
    s.threads = s.lanes * s.slots;
    s.parts = ceil_div(s.vectors, s.lanes);
    const int64_t steps = ceil_div(ceil_div(l.outer, s.slots), ROW_BLOCKS);
    s.length = (steps < 4 ? 4 : steps) * s.slots;
    s.partial_rows = ceil_div(l.outer, s.length);
    s.blocks = s.partial_rows * s.parts;
    return s;
  }
  s.vectors = l.inner / v;
  s.lanes = 1;
  while (s.lanes < THREADS && (s.lanes < 8 ? s.lanes < s.vectors : s.lanes * 4 < s.vectors)) s.lanes *= 2;
  s.slots = THREADS / s.lanes;
  s.threads = THREADS;
  s.length = int64_t(s.lanes) * PLANE_VECTORS;
  s.parts = ceil_div(s.vectors, s.length);
  s.partial_rows = l.outer * s.parts;
  s.blocks = ceil_div(s.partial_rows * l.channels, s.slots);
  return s;
}

template <class T>
struct Job {
  using C = typename Wide<T>::Type;
  const T *in, *ref, *dy;
  const C *bias, *ddb;
  T *out, *out2;
  C* partial;
  int act, by_x;
};

// One element: op is a compile-time constant, so is ACT; by_x is not, as only one side of the branch is ever taken.
template <int OP, int ACT, class C>
__device__ __forceinline__ C element(C in, C ref, C dy, C bias, bool by_x, const ActNumbers<C>& f, C* second) {
  *second = C(0);
  if constexpr (OP == BIAS_ACT_FORWARD) return bias_act_forward<ACT>(in, bias, f);
  if constexpr (OP == BIAS_ACT_BACKWARD)
    return by_x ? bias_act_backward<ACT, true>(in, ref, bias, f) : bias_act_backward<ACT, false>(in, ref, bias, f);
  if constexpr (OP == BIAS_ACT_DOUBLE_BACKWARD)
    return by_x ? bias_act_double_backward<ACT, true>(in, dy, ref, bias, f, second)
                : bias_act_double_backward<ACT, false>(in, dy, ref, bias, f, second);
}

template <class T, int V, int OP, int ACT>
__device__ __forceinline__ void vector(const Job<T>& job, const Vector<T, V>& in, const Vector<T, V>& ref,
                                       const Vector<T, V>& dy, const typename Wide<T>::Type (&bias)[V],
                                       const typename Wide<T>::Type (&ddb)[V], const ActNumbers<typename Wide<T>::Type>& f,
                                       int64_t offset, typename Wide<T>::Type (&sums)[V]) {
  using C = typename Wide<T>::Type;
  Vector<T, V> out, out2;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    C second;
    const C first = element<OP, ACT>(widened(in.at[i]) + (OP == BIAS_ACT_DOUBLE_BACKWARD ? ddb[i] : C(0)),
                                     widened(ref.at[i]), widened(dy.at[i]), bias[i], job.by_x, f, &second);
    narrowed(first, &out.at[i]);
    narrowed(second, &out2.at[i]);
    if (OP != BIAS_ACT_FORWARD) sums[i] += OP == BIAS_ACT_BACKWARD ? first : second;
  }
  *reinterpret_cast<Vector<T, V>*>(job.out + offset) = out;
  if (OP == BIAS_ACT_DOUBLE_BACKWARD && job.out2) *reinterpret_cast<Vector<T, V>*>(job.out2 + offset) = out2;
}

template <class T, int V, int OP, int ACT, int DEPTH>
__device__ __forceinline__ void run(const Job<T>& job, int64_t offset, int64_t step, int64_t count,
                                    const typename Wide<T>::Type (&bias)[V], const typename Wide<T>::Type (&ddb)[V],
                                    const ActNumbers<typename Wide<T>::Type>& f, typename Wide<T>::Type (&sums)[V]) {
  const auto read = [](const T* from, int64_t at) { return *reinterpret_cast<const Vector<T, V>*>(from + at); };
  for (; count > 0; count -= DEPTH, offset += DEPTH * step) {
    Vector<T, V> in[DEPTH] = {}, ref[DEPTH] = {}, dy[DEPTH] = {};
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
      if (d >= count) continue;
      const int64_t at = offset + d * step;
      if (OP != BIAS_ACT_DOUBLE_BACKWARD || job.in) in[d] = read(job.in, at);
      if (OP != BIAS_ACT_FORWARD) ref[d] = read(job.ref, at);
      if (OP == BIAS_ACT_DOUBLE_BACKWARD && job.dy) dy[d] = read(job.dy, at);
    }
#pragma unroll
    for (int d = 0; d < DEPTH; ++d)
      if (d < count) vector<T, V, OP, ACT>(job, in[d], ref[d], dy[d], bias, ddb, f, offset + d * step, sums);
  }
}

// The sum over `lanes` neighbouring threads (a power of two), in the first of them; every thread of the block calls it.
template <class C>
__device__ __forceinline__ C sum_over_lanes(C value, int lanes, C* shared) {
  const int t = threadIdx.x;
  for (int apart = (lanes < WARP ? lanes : WARP) / 2; apart; apart /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, apart);
  if (lanes <= WARP) return value;
  if (t % WARP == 0) shared[t / WARP] = value;
  __syncthreads();
  C sum = C(0);
  if (t % lanes == 0)
    for (int w = 0; w < lanes / WARP; ++w) sum += shared[t / WARP + w];
  return sum;
}

template <class T, int V, int OP, bool CHEAP>
__global__ void __launch_bounds__(THREADS, 2) bias_act_kernel(Job<T> job, Sharing s, ActNumbers<typename Wide<T>::Type> f) {
  using C = typename Wide<T>::Type;
  __shared__ C shared[THREADS * V];
  const int t = threadIdx.x, lane = t % s.lanes, slot = t / s.lanes;
  int64_t offset = 0, step = 0, count = 0, channel = 0, partial_row = 0;
  if (s.by_rows) {
    const int64_t tile = blockIdx.x % s.parts, column = tile * s.lanes + lane;
    partial_row = blockIdx.x / s.parts;
    const int64_t first = partial_row * s.length + slot, past = min((partial_row + 1) * s.length, s.outer);
    if (column < s.vectors && first < past) count = (past - first + s.slots - 1) / s.slots;
    channel = column * V;
    offset = first * s.channels + channel;
    step = s.slots * s.channels;
  } else {
    const int64_t index = int64_t(blockIdx.x) * s.slots + slot, plane = index / s.parts, part = index % s.parts;
    const int64_t first = part * s.length + lane, past = min((part + 1) * s.length, s.vectors);
    const int64_t n = plane / s.channels;
    if (n < s.outer && first < past) count = (past - first + s.lanes - 1) / s.lanes;
    channel = plane - n * s.channels;
    partial_row = n < s.outer ? n * s.parts + part : s.partial_rows;
    offset = plane * s.inner + first * V;
    step = int64_t(s.lanes) * V;
  }
  C bias[V], ddb[V], sums[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int64_t c = channel + (s.by_rows ? i : 0);
    bias[i] = count && job.bias ? job.bias[c] : C(0);
    ddb[i] = count && OP == BIAS_ACT_DOUBLE_BACKWARD && job.ddb ? job.ddb[c] : C(0);
    sums[i] = C(0);
  }
  // Deeper spills registers where a vector holds eight numbers.
  constexpr int DEEP = OP == BIAS_ACT_FORWARD ? 4 : (V == 8 ? 2 : 4) / (OP == BIAS_ACT_BACKWARD ? 1 : 2);
  if constexpr (CHEAP) {
    if (job.act == RELU) run<T, V, OP, RELU, DEEP>(job, offset, step, count, bias, ddb, f, sums);
    else run<T, V, OP, LRELU, DEEP>(job, offset, step, count, bias, ddb, f, sums);
  } else {
    switch (job.act) {
      case TANH: run<T, V, OP, TANH, 1>(job, offset, step, count, bias, ddb, f, sums); break;
      case SIGMOID: run<T, V, OP, SIGMOID, 1>(job, offset, step, count, bias, ddb, f, sums); break;
      case ELU: run<T, V, OP, ELU, 1>(job, offset, step, count, bias, ddb, f, sums); break;
      case SOFTPLUS: run<T, V, OP, SOFTPLUS, 1>(job, offset, step, count, bias, ddb, f, sums); break;
      default: run<T, V, OP, SWISH, 1>(job, offset, step, count, bias, ddb, f, sums);
    }
  }
  if (OP == BIAS_ACT_FORWARD || !job.partial) return;  // the same for every thread
  C* row = job.partial + partial_row * s.channels;
  if (!s.by_rows) {
    C sum = sums[0];
#pragma unroll
    for (int i = 1; i < V; ++i) sum += sums[i];
    sum = sum_over_lanes(sum, s.lanes, shared);
    if (lane == 0 && partial_row < s.partial_rows) row[channel] = sum;
    return;
  }
#pragma unroll
  for (int i = 0; i < V; ++i) shared[i * s.threads + t] = sums[i];
  __syncthreads();
  for (int j = t; j < s.lanes * V; j += s.threads) {
    const int i = j % V, column = j / V;
    const int64_t c = channel - int64_t(lane) * V + j;
    C sum = C(0);
    for (int k = 0; k < s.slots; ++k) sum += shared[i * s.threads + k * s.lanes + column];
    if (c < s.channels) row[c] = sum;
  }
}

// sums[c] of partial[rows, channels]: 32 channels per block, 8 threads for each.
template <class C>
__global__ void __launch_bounds__(THREADS) bias_act_sums(const C* partial, int64_t rows, int64_t channels, C* sums) {
  __shared__ C shared[THREADS];
  const int t = threadIdx.x;
  const int64_t c = int64_t(blockIdx.x) * WARP + t % WARP;
  C sum = C(0);
  if (c < channels)
    for (int64_t r = t / WARP; r < rows; r += THREADS / WARP) sum += partial[r * channels + c];
  shared[t] = sum;
  __syncthreads();
  if (t >= WARP || c >= channels) return;
  for (int k = 1; k < THREADS / WARP; ++k) sum += shared[k * WARP + t];
  sums[c] = sum;
}

template <class T, int V, int OP>
int launch(const BiasActLayout& layout, const ActForm& form, const BiasActTensors& t, void* stream_given) {
  using C = typename Wide<T>::Type;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_given);
  const Sharing s = sharing_of(layout, V);
  const Job<T> job{(const T*)t.in, (const T*)t.ref, (const T*)t.dy, (const C*)t.bias, (const C*)t.ddb,
                   (T*)t.out, (T*)t.out2, t.sums ? (C*)t.partial : nullptr, form.act, form.by_x};
  const ActNumbers<C> f(form);
  if (s.blocks > 0x7fffffff) return int(cudaErrorInvalidConfiguration);
  const dim3 grid(static_cast<unsigned>(s.blocks)), block(s.threads);
  const bool cheap = form.act == RELU || form.act == LRELU;
  if (cheap) EEG_GAN_LAUNCH((bias_act_kernel<T, V, OP, true>), grid, block, 0, stream, job, s, f);
  else EEG_GAN_LAUNCH((bias_act_kernel<T, V, OP, false>), grid, block, 0, stream, job, s, f);
  int error = int(cudaGetLastError());
  if (error || !t.sums) return error;
  const dim3 columns(static_cast<unsigned>(ceil_div(layout.channels, WARP)));
  EEG_GAN_LAUNCH(bias_act_sums<C>, columns, dim3(THREADS), 0, stream, (const C*)t.partial, s.partial_rows,
                 layout.channels, (C*)t.sums);
  return int(cudaGetLastError());
}

template <class T, int V>
int launch_op(int op, const BiasActLayout& layout, const ActForm& form, const BiasActTensors& t, void* stream) {
  if (op == BIAS_ACT_FORWARD) return launch<T, V, BIAS_ACT_FORWARD>(layout, form, t, stream);
  if (op == BIAS_ACT_BACKWARD) return launch<T, V, BIAS_ACT_BACKWARD>(layout, form, t, stream);
  return launch<T, V, BIAS_ACT_DOUBLE_BACKWARD>(layout, form, t, stream);
}

inline int vector_size(int type, const BiasActLayout& layout, bool aligned) {
  const int v = type == BIAS_ACT_FLOAT ? 4 : type == BIAS_ACT_DOUBLE ? 1 : 8;
  return aligned && fits(layout, v) ? v : 1;
}

}  // namespace
}  // namespace eeg_gan

extern "C" int64_t eeg_gan_bias_act_partial_rows(int type, const eeg_gan::BiasActLayout* layout, int aligned) {
  return eeg_gan::sharing_of(*layout, eeg_gan::vector_size(type, *layout, aligned)).partial_rows;
}

extern "C" int eeg_gan_bias_act(int op, int type, const eeg_gan::BiasActLayout* layout, int aligned,
                                const eeg_gan::ActForm* form, const eeg_gan::BiasActTensors* tensors, void* stream) {
  using namespace eeg_gan;
  const bool vectors = vector_size(type, *layout, aligned) > 1;
  switch (type) {
    case BIAS_ACT_FLOAT:
      return vectors ? launch_op<float, 4>(op, *layout, *form, *tensors, stream)
                     : launch_op<float, 1>(op, *layout, *form, *tensors, stream);
    case BIAS_ACT_DOUBLE: return launch_op<double, 1>(op, *layout, *form, *tensors, stream);
    case BIAS_ACT_BFLOAT16:
      return vectors ? launch_op<__nv_bfloat16, 8>(op, *layout, *form, *tensors, stream)
                     : launch_op<__nv_bfloat16, 1>(op, *layout, *form, *tensors, stream);
    default:
      return vectors ? launch_op<__half, 8>(op, *layout, *form, *tensors, stream)
                     : launch_op<__half, 1>(op, *layout, *form, *tensors, stream);
  }
}
