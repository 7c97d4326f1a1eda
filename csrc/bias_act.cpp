// bias_act on the CPU, and the registration of both devices' kernels.
//
// Work is cut into units by the shape alone; a unit goes through memory in chunks that stay in the first-level cache
// together with the biases spread over them. Sums for db are made per unit and then added in the units' order: the
// result does not depend on the number of threads.
#include "bias_act.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "bias_act_loops.h"
#include "check.h"

namespace eeg_gan {
namespace {

constexpr int64_t NARROW = 128;  // below it, sums of a channel's neighbours are made at the end of a unit

// --- Cutting the tensor into units

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Plan {
  int64_t outer, channels, inner;
  int64_t rows;      // whole [channels, inner] rows per chunk; above 1 only if a unit holds all channels
  int64_t group;     // channels per unit, below all only if rows == 1
  int64_t part;      // of inner per unit; below all only if group == 1
  int64_t n_groups, n_parts, n_splits, split;  // split: of outer, per unit

  explicit Plan(const BiasActLayout& l) : outer(l.outer), channels(l.channels), inner(l.inner) {
    const int64_t period = channels * inner;
    rows = period <= CHUNK ? std::min(CHUNK / period, outer) : 1;
    group = period <= CHUNK ? channels : std::max<int64_t>(1, CHUNK / inner);
    n_groups = ceil_div(channels, group);
    const bool planes = group == 1 && inner >= CHUNK;
    const int64_t wanted = planes ? ceil_div(64, outer * channels) : 1;
    part = ceil_div(ceil_div(inner, std::min(wanted, ceil_div(inner, CHUNK))), 64) * 64;
    if (!planes) part = inner;
    n_parts = ceil_div(inner, part);
    // Planes of some length: units follow one another in memory, which the processor reads ahead. Else fewer units, as
    // each has sums per element of a row.
    const int64_t splits = rows == 1 && inner >= NARROW ? outer : std::min(ceil_div(256, n_groups), outer * period / (4 * CHUNK));
    split = ceil_div(ceil_div(outer, std::max<int64_t>(1, splits)), rows) * rows;
    n_splits = ceil_div(outer, split);
  }
  int64_t units() const { return n_splits * n_groups * n_parts; }
  int64_t partial_rows() const { return n_splits * n_parts; }
};

template <class T>
struct Streams {
  using C = typename Computing<T>::Type;
  const T *in, *ref, *dy;
  const C *bias, *ddb;
  T *out, *out2;
  double* partial;
  bool past_caches;
};

// Spreads one number per channel over a chunk of `rows` rows.
template <class C>
void spread(const C* values, int64_t rows, int64_t channels, int64_t run, C* to) {
  if (channels == 1 || run > 1) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < channels; ++c, to += run) std::fill(to, to + run, values ? values[c] : C(0));
  } else {
    for (int64_t r = 0; r < rows; ++r, to += channels)
      for (int64_t c = 0; c < channels; ++c) to[c] = values ? values[c] : C(0);
  }
}

template <class T>
struct Scratch {
  using C = typename Computing<T>::Type;
  alignas(64) C bias[CHUNK], ddb[CHUNK], in[CHUNK], ref[CHUNK], dy[CHUNK], out[CHUNK], out2[CHUNK];
  alignas(64) double sums[CHUNK];
  alignas(64) T narrow[CHUNK];
};

// Where the results of a chunk are made, and how they reach their place from there.
template <class T, class C>
C* place_of(const Streams<T>& s, T* to, C* buffer) {
  if constexpr (std::is_same_v<T, C>) return s.past_caches ? buffer : to;
  else return buffer;
}
template <class T, class C>
void keep(const Streams<T>& s, const C* from, T* results, int64_t at, int64_t n, T* between) {
  T* to = results + at;
  if constexpr (!std::is_same_v<T, C>) narrow(from, s.past_caches ? between : to, n);
  if (!s.past_caches) return;
  const void* values = from;
  if constexpr (!std::is_same_v<T, C>) values = between;
  stream_out(values, to, n * sizeof(T), s.in ? s.in + at : nullptr, s.ref ? s.ref + at : nullptr);
}

template <class T>
void chunk(int op, const ActForm& form, const ActNumbers<typename Computing<T>::Type>& f, const Streams<T>& s,
           int64_t at, int64_t n, Scratch<T>& w, int64_t run, int64_t n_channels) {
  using C = typename Computing<T>::Type;
  C* out = place_of(s, s.out + at, w.out);
  if (op == BIAS_ACT_FORWARD) {
    const C* x = chunk_of(s.in + at, w.in, n);
    if (!run) forward_run(form.act, false, x, w.bias, out, n, f);
    for (int64_t i = 0, c = 0; run && i < n; i += run, c = c + 1 == n_channels ? 0 : c + 1)
      forward_run(form.act, true, x + i, w.bias + c, out + i, std::min(run, n - i), f);
    keep(s, out, s.out, at, n, w.narrow);
    return;
  }
  const C* ref = chunk_of(s.ref + at, w.ref, n);
  const C* v = s.in ? chunk_of(s.in + at, w.in, n) : w.ddb;
  if (s.in && s.ddb) {
    for (int64_t i = 0; i < n; ++i) w.in[i] = v[i] + w.ddb[i];
    v = w.in;
  }
  if (op == BIAS_ACT_DOUBLE_BACKWARD && s.out2) {
    C* out2 = place_of(s, s.out2 + at, w.out2);
    double_run(form.act, form.by_x, v, chunk_of(s.dy + at, w.dy, n), ref, w.bias, out, out2, n, f);
    keep(s, out2, s.out2, at, n, w.narrow);
  } else {
    backward_run(form.act, form.by_x, v, ref, w.bias, out, n, f);
  }
  keep(s, out, s.out, at, n, w.narrow);
}

template <class T>
void unit(int op, const ActForm& form, const Plan& p, const Streams<T>& s, int64_t index) {
  using C = typename Computing<T>::Type;
  const ActNumbers<C> f(form);
  Scratch<T> w;
  const int64_t q = index % p.n_parts, k = index / p.n_parts % p.n_groups, split = index / p.n_parts / p.n_groups;
  const int64_t c0 = k * p.group, n_channels = std::min(p.group, p.channels - c0);
  const int64_t j0 = q * p.part, part = std::min(p.part, p.inner - j0);
  const int64_t n0 = split * p.split, n1 = std::min(n0 + p.split, p.outer), width = n_channels * part;
  const int64_t rows = std::min(p.rows, n1 - n0), run = std::min(part, CHUNK);
  const bool narrow_channels = part < NARROW;  // then whole rows are added, and folded at the end
  const bool one_bias = op == BIAS_ACT_FORWARD && !narrow_channels;  // at a time, for the whole of a run
  if (one_bias) spread(s.bias ? s.bias + c0 : nullptr, 1, n_channels, 1, w.bias);
  else if (op == BIAS_ACT_FORWARD || form.by_x) spread(s.bias ? s.bias + c0 : nullptr, rows, n_channels, run, w.bias);
  if (s.ddb) spread(s.ddb + c0, rows, n_channels, run, w.ddb);
  const int64_t n_sums = !s.partial ? 0 : narrow_channels ? width : n_channels;
  std::fill(w.sums, w.sums + n_sums, 0.0);
  for (int64_t n = n0; n < n1; n += rows) {
    const int64_t here = std::min(rows, n1 - n), begin = (n * p.channels + c0) * p.inner + j0, total = here * width;
    for (int64_t i = 0; i < total; i += CHUNK) {  // one chunk, unless a plane is longer
      const int64_t length = std::min(CHUNK, total - i);
      chunk(op, form, f, s, begin + i, length, w, one_bias ? run : 0, n_channels);
      if (!n_sums) continue;
      const bool second = op == BIAS_ACT_DOUBLE_BACKWARD;
      const C* summed = second ? place_of(s, s.out2 + begin + i, w.out2) : place_of(s, s.out + begin + i, w.out);
      if (narrow_channels) {
        add_rows(summed, here, width, w.in, w.sums);
      } else {
        const int64_t step = std::min(part, length);
        for (int64_t c = 0, j = 0; j < length; j += step, ++c) w.sums[c % n_channels] += sum_of(summed + j, step);
      }
    }
  }
  if (s.past_caches) end_of_streaming();
  if (!n_sums) return;
  double* row = s.partial + (split * p.n_parts + q) * p.channels + c0;
  for (int64_t c = 0; c < n_channels; ++c) {
    row[c] = narrow_channels ? 0.0 : w.sums[c];
    if (narrow_channels)
      for (int64_t j = 0; j < part; ++j) row[c] += w.sums[c * part + j];
  }
}

template <class T>
void whole(int op, const BiasActLayout& layout, const ActForm& form, const BiasActTensors& t) {
  using C = typename Computing<T>::Type;
  const Plan p(layout);
  std::vector<double> partial(t.sums ? p.partial_rows() * p.channels : 0);
  const int64_t elements = layout.outer * layout.channels * layout.inner;
  const int64_t results = (1 + !!t.out2) * elements * int64_t(sizeof(T));
  const Streams<T> s{(const T*)t.in, (const T*)t.ref, (const T*)t.dy, (const C*)t.bias, (const C*)t.ddb,
                     (T*)t.out, (T*)t.out2, t.sums ? partial.data() : nullptr, results > KEPT_IN_CACHES};
  const int64_t grain = std::max<int64_t>(1, p.units() * 16384 / elements);  // a thread is not worth less
  for_each_unit(p.units(), grain, [&](int64_t index) { unit<T>(op, form, p, s, index); });
  if (!t.sums) return;
  C* sums = static_cast<C*>(t.sums);
  for (int64_t c = 0; c < p.channels; ++c) {
    double sum = 0;
    for (int64_t r = 0; r < p.partial_rows(); ++r) sum += partial[r * p.channels + c];
    sums[c] = C(sum);
  }
}

void run_on_cpu(int op, int type, const BiasActLayout& layout, const ActForm& form, const BiasActTensors& t) {
  switch (type) {
    case BIAS_ACT_FLOAT: return whole<float>(op, layout, form, t);
    case BIAS_ACT_DOUBLE: return whole<double>(op, layout, form, t);
    case BIAS_ACT_BFLOAT16: return whole<BFloat16>(op, layout, form, t);
    default: return whole<Float16>(op, layout, form, t);
  }
}

// --- Tensors

ScalarType computing_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

int type_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return BIAS_ACT_FLOAT;
    case ScalarType::Double: return BIAS_ACT_DOUBLE;
    case ScalarType::BFloat16: return BIAS_ACT_BFLOAT16;
    case ScalarType::Half: return BIAS_ACT_HALF;
    default: STD_TORCH_CHECK(false, op, ": x is float32, float64, bfloat16 or float16"); return 0;
  }
}

bool is_dense(const Tensor& t) {
  std::vector<std::pair<int64_t, int64_t>> axes;
  for (int64_t i = 0; i < t.dim(); ++i)
    if (t.size(i) != 1) axes.emplace_back(t.stride(i), t.size(i));
  std::sort(axes.begin(), axes.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : axes) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

Tensor dense(const Tensor& t) { return is_dense(t) ? t : torch::stable::clone(t); }

// t with the strides of `like`, which is dense
Tensor laid_out(const char* op, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.dim() == like.dim() && t.scalar_type() == like.scalar_type(), op, ": tensors do not fit together");
  bool same = true;
  for (int64_t i = 0; i < t.dim(); ++i) {
    STD_TORCH_CHECK(t.size(i) == like.size(i), op, ": tensors differ in size along dimension ", i);
    same = same && (t.size(i) == 1 || t.stride(i) == like.stride(i));
  }
  if (same) return t;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, t);
  return copy;
}

BiasActLayout layout_of(const char* op, const Tensor& t, int64_t dim) {
  STD_TORCH_CHECK(dim >= 0 && dim < t.dim(), op, ": dim is ", dim, ", but x has ", t.dim(), " dimensions");
  const int64_t channels = t.size(dim), inner = channels == 1 ? t.numel() : t.stride(dim);
  return {t.numel() / std::max<int64_t>(1, channels * inner), channels, inner};
}

std::optional<Tensor> per_channel(const char* op, const std::optional<Tensor>& b, const Tensor& x, int64_t dim) {
  if (!b) return b;
  STD_TORCH_CHECK(b->dim() == 1 && b->size(0) == x.size(dim), op, ": b is [", x.size(dim), "]");
  STD_TORCH_CHECK(b->get_device() == x.get_device() && b->is_cpu() == x.is_cpu(), op, ": b is on x's device");
  const Tensor typed = b->scalar_type() == computing_type(x) ? *b : torch::stable::to(*b, computing_type(x));
  return torch::stable::contiguous(typed);
}

// The clamp as y's type holds it. Where derivatives are told from x, y is not rounded before it is compared: then the
// limit is the smallest number that rounds to it.
double limit_of(const Tensor& t, double clamp, bool by_x) {
  if (clamp < 0 || t.scalar_type() == ScalarType::Double) return clamp;
  if (t.scalar_type() == ScalarType::Float) return float(clamp);
  const bool brain = t.scalar_type() == ScalarType::BFloat16;
  BFloat16 b;
  Float16 h;
  store(&b, float(clamp));
  store(&h, float(clamp));
  const double limit = brain ? load(b) : load(h);
  if (!by_x || limit == 0 || limit == INFINITY) return limit;
  return (limit + (brain ? load(BFloat16{uint16_t(b.bits - 1)}) : load(Float16{uint16_t(h.bits - 1)}))) / 2;
}

const void* pointer(const std::optional<Tensor>& t) { return t ? t->const_data_ptr() : nullptr; }

void run(int op, const char* name, const Tensor& like, int64_t dim, const ActForm& form, BiasActTensors t,
         const std::optional<Tensor>& sums) {
  if (like.numel() == 0) {
    if (sums) torch::stable::fill_(*sums, 0.0);
    return;
  }
  const BiasActLayout layout = layout_of(name, like, dim);
  const int type = type_of(name, like);
  t.sums = sums ? sums->mutable_data_ptr() : nullptr;
  if (like.is_cpu()) return run_on_cpu(op, type, layout, form, t);
#ifdef EEG_GAN_CUDA
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  uintptr_t addresses = 0;
  for (const void* p : {t.in, t.ref, t.dy, (const void*)t.out, (const void*)t.out2}) addresses |= uintptr_t(p);
  const int aligned = addresses % 16 == 0;
  Tensor partial;  // freed in stream order by torch's allocator
  if (sums) {
    const int64_t rows = eeg_gan_bias_act_partial_rows(type, &layout, aligned);
    partial = torch::stable::new_empty(like, {rows, layout.channels}, sums->scalar_type());
    t.partial = partial.mutable_data_ptr();
  }
  check_launch(name, eeg_gan_bias_act(op, type, &layout, aligned, &form, &t, current_stream(like)));
#endif
}

Tensor forward(const Tensor& x_given, const std::optional<Tensor>& b_given, int64_t dim, int64_t act, double alpha,
               double gain, double clamp) {
  const char* name = "bias_act";
  const Tensor x = dense(x_given);
  const auto b = per_channel(name, b_given, x, dim);
  Tensor y = torch::stable::empty_like(x);
  BiasActTensors t{};
  t.in = x.const_data_ptr();
  t.bias = pointer(b);
  t.out = y.mutable_data_ptr();
  run(BIAS_ACT_FORWARD, name, x, dim, act_form(int(act), alpha, gain, limit_of(x, clamp, false), false), t, std::nullopt);
  return y;
}

std::optional<Tensor> sums_like(const Tensor& x, int64_t dim, bool wanted) {
  if (!wanted) return std::nullopt;
  return torch::stable::new_empty(x, {x.size(dim)}, computing_type(x));
}

Tensor or_nothing(const std::optional<Tensor>& t, const Tensor& like) {
  return t ? *t : torch::stable::new_empty(like, {0}, computing_type(like));
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy_given, const std::optional<Tensor>& ref_given,
                                    const std::optional<Tensor>& b_given, int64_t dim, int64_t act, double alpha,
                                    double gain, double clamp, bool by_x, bool want_db) {
  const char* name = "bias_act_backward";
  const Tensor ref = dense(ref_given ? *ref_given : dy_given), dy = laid_out(name, ref_given ? dy_given : ref, ref);
  const auto b = per_channel(name, b_given, ref, dim), db = sums_like(ref, dim, want_db);
  Tensor dx = torch::stable::empty_like(ref);
  BiasActTensors t{};
  t.in = dy.const_data_ptr();
  t.ref = ref.const_data_ptr();
  t.bias = pointer(b);
  t.out = dx.mutable_data_ptr();
  run(BIAS_ACT_BACKWARD, name, ref, dim, act_form(int(act), alpha, gain, limit_of(ref, clamp, by_x), by_x), t, db);
  return {dx, or_nothing(db, ref)};
}

std::tuple<Tensor, Tensor, Tensor> double_backward(
    const std::optional<Tensor>& ddx_given, const std::optional<Tensor>& ddb_given, const Tensor& dy_given,
    const std::optional<Tensor>& ref_given, const std::optional<Tensor>& b_given, int64_t dim, int64_t act,
    double alpha, double gain, double clamp, bool by_x, bool want_ref, bool want_b) {
  const char* name = "bias_act_double_backward";
  STD_TORCH_CHECK(want_ref || !want_b, name, ": the gradient of b is a sum of that of ref, which is not wanted");
  const Tensor ref = dense(ref_given ? *ref_given : dy_given), dy = laid_out(name, ref_given ? dy_given : ref, ref);
  std::optional<Tensor> ddx;
  if (ddx_given) ddx = laid_out(name, *ddx_given, ref);
  const auto ddb = per_channel(name, ddb_given, ref, dim), b = per_channel(name, b_given, ref, dim);
  const auto gb = sums_like(ref, dim, want_b);
  Tensor gdy = torch::stable::empty_like(ref);
  std::optional<Tensor> gref;
  if (want_ref) gref = torch::stable::empty_like(ref);
  BiasActTensors t{};
  t.in = pointer(ddx);
  t.ref = ref.const_data_ptr();
  t.dy = want_ref ? dy.const_data_ptr() : nullptr;
  t.bias = pointer(b);
  t.ddb = pointer(ddb);
  t.out = gdy.mutable_data_ptr();
  t.out2 = want_ref ? gref->mutable_data_ptr() : nullptr;
  const ActForm form = act_form(int(act), alpha, gain, limit_of(ref, clamp, by_x), by_x);
  run(BIAS_ACT_DOUBLE_BACKWARD, name, ref, dim, form, t, gb);
  return {gdy, gref ? *gref : or_nothing(std::nullopt, ref), or_nothing(gb, ref)};
}

}  // namespace
}  // namespace eeg_gan

STABLE_TORCH_LIBRARY_IMPL(eeg_gan, CPU, m) {
  m.impl("bias_act", TORCH_BOX(&eeg_gan::forward));
  m.impl("bias_act_backward", TORCH_BOX(&eeg_gan::backward));
  m.impl("bias_act_double_backward", TORCH_BOX(&eeg_gan::double_backward));
}

#ifdef EEG_GAN_CUDA
STABLE_TORCH_LIBRARY_IMPL(eeg_gan, CUDA, m) {
  m.impl("bias_act", TORCH_BOX(&eeg_gan::forward));
  m.impl("bias_act_backward", TORCH_BOX(&eeg_gan::backward));
  m.impl("bias_act_double_backward", TORCH_BOX(&eeg_gan::double_backward));
}
#endif
