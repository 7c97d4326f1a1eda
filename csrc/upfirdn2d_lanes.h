// The case of the networks on a CPU: float32, channels_last, four separable taps, up or down by two or neither. Included
// once per instruction set, inside a namespace and under a target of its own (upfirdn2d.cpp), which define LANES and
// STREAM; hence no guard.
//
// Two output rows are made together, pixel by pixel with all channels, so that every stream of memory is read and
// written in order: input columns are summed vertically into a ring that stays in the first cache, and each result is
// summed from the ring. Large results are written past the caches, as nothing of them would be left there anyway; that
// saves reading what is about to be overwritten.

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef float Memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline __attribute__((always_inline)) Lanes load(const float* p) { return *reinterpret_cast<const Memory*>(p); }
inline __attribute__((always_inline)) void store(float* p, Lanes v) { *reinterpret_cast<Memory*>(p) = v; }
template <bool PAST_CACHES>
inline __attribute__((always_inline)) void put(float* p, Lanes v) {
  if constexpr (PAST_CACHES) STREAM(p, v);
  else store(p, v);
}

template <bool MIRROR>
inline __attribute__((always_inline)) Lanes sum4(const float* p, const float* q, const float* r, Lanes s, const float* w) {
  if constexpr (MIRROR) return w[0] * (load(p) + s) + w[1] * (load(q) + load(r));
  return w[0] * load(p) + w[1] * load(q) + w[2] * load(r) + w[3] * s;
}

// Of the two rows: source rows and weights of the vertical filter, ring of summed columns, where the results go.
struct TwoRows {
  const float* source[2][4];
  const float* w[2];
  float* ring[2][4];  // as many summed columns, of which the last is the newest
  float* out[2];
};

// Sums input column x vertically into ring[at] of both rows; columns outside of the image are zero.
template <int TAPS, bool MIRROR>
inline __attribute__((always_inline)) void column(const TwoRows& rows, int at, int64_t x, int64_t width, int64_t c) {
  for (int row = 0; row < 2; ++row) {
    float* v = rows.ring[row][at];
    if (x < 0 || x >= width) {
      for (int64_t k = 0; k < c; k += LANES) store(v + k, Lanes{});
      continue;
    }
    const float *p = rows.source[row][0] + x * c, *q = rows.source[row][1] + x * c, *w = rows.w[row];
    if constexpr (TAPS == 2) {
      for (int64_t k = 0; k < c; k += LANES) store(v + k, w[0] * load(p + k) + w[1] * load(q + k));
    } else {
      const float *r = rows.source[row][2] + x * c, *s = rows.source[row][3] + x * c;
      for (int64_t k = 0; k < c; k += LANES) store(v + k, sum4<MIRROR>(p + k, q + k, r + k, load(s + k), w));
    }
  }
}

template <int N>
inline __attribute__((always_inline)) void turn(TwoRows& rows, int by) {
  for (int row = 0; row < 2; ++row) {
    float* before[N];
    for (int i = 0; i < N; ++i) before[i] = rows.ring[row][i];
    for (int i = 0; i < N; ++i) rows.ring[row][i] = before[(i + by) % N];
  }
}

// Rows of `n` outputs without upsampling; `x` is the first input column under them.
template <int DOWN, bool MIRROR, bool PAST>
inline __attribute__((always_inline)) void narrow(TwoRows rows, const float* w, int64_t x, int64_t width, int64_t c,
                                                  int64_t n) {
  for (int i = 0; i < 4 - DOWN; ++i) column<4, MIRROR>(rows, i, x++, width, c);
  for (int64_t m = 0; m < n; ++m) {
    if constexpr (DOWN == 2) column<4, MIRROR>(rows, 2, x++, width, c);
    if (x < 0 || x >= width) {
      column<4, MIRROR>(rows, 3, x, width, c);
      for (int row = 0; row < 2; ++row) {
        float* const* v = rows.ring[row];
        for (int64_t k = 0; k < c; k += LANES)
          put<PAST>(rows.out[row] + k, sum4<MIRROR>(v[0] + k, v[1] + k, v[2] + k, load(v[3] + k), w));
      }
    } else {  // the newest column is used while it is made
      for (int row = 0; row < 2; ++row) {
        const float *p = rows.source[row][0] + x * c, *q = rows.source[row][1] + x * c;
        const float *r = rows.source[row][2] + x * c, *s = rows.source[row][3] + x * c, *wy = rows.w[row];
        float *a = rows.ring[row][0], *b = rows.ring[row][1], *d = rows.ring[row][2], *v = rows.ring[row][3];
        float* out = rows.out[row];
        for (int64_t k = 0; k < c; k += LANES) {
          const Lanes newest = sum4<MIRROR>(p + k, q + k, r + k, load(s + k), wy);
          put<PAST>(out + k, sum4<MIRROR>(a + k, b + k, d + k, newest, w));
          store(v + k, newest);
        }
      }
    }
    ++x;
    for (int row = 0; row < 2; ++row) rows.out[row] += c;
    turn<4>(rows, DOWN);
  }
}

// Rows of `n` outputs at twice the rate; even and odd phases have two taps each and change places at every output.
template <bool PAST>
inline __attribute__((always_inline)) void wide(TwoRows rows, const float* even, const float* odd, bool starts_odd,
                                                int64_t x, int64_t width, int64_t c, int64_t n) {
  column<2, false>(rows, 0, x++, width, c);
  column<2, false>(rows, 1, x++, width, c);
  const auto emit = [&](const float* w, int64_t m) __attribute__((always_inline)) {
    for (int row = 0; row < 2; ++row) {
      const float *p = rows.ring[row][0], *q = rows.ring[row][1];
      float* out = rows.out[row] + m * c;
      for (int64_t k = 0; k < c; k += LANES) put<PAST>(out + k, w[0] * load(p + k) + w[1] * load(q + k));
    }
  };
  int64_t m = 0;
  if (starts_odd) emit(odd, m++);  // the even output behind it has the same inputs
  for (; m + 1 < n; m += 2) {
    emit(even, m);
    turn<2>(rows, 1);
    column<2, false>(rows, 1, x++, width, c);
    emit(odd, m + 1);
  }
  if (m < n) emit(even, m);
}

template <bool MIRROR, bool PAST>
inline __attribute__((always_inline)) void rows_of(const LanesJob& job, int64_t image, int64_t y_begin, int64_t y_end,
                                                   float* scratch) {
  const int64_t c = job.c, row = job.width * c, out_row = job.out_width * c;
  const float* x = job.x + image * job.height * row;
  float* out = job.out + image * job.out_height * out_row;
  const int taps = job.up == 2 ? 2 : 4;
  for (int64_t m = y_begin; m < y_end; m += 2) {
    TwoRows rows{};
    for (int r = 0; r < 2; ++r) {
      const int64_t y = m + r < y_end ? m + r : m;  // an odd last row is made twice
      for (int k = 0; k < taps; ++k) {
        const int64_t from = job.first_y[y] + k;
        rows.source[r][k] = from < 0 || from >= job.height ? job.zeros : x + from * row;
      }
      rows.w[r] = job.wy[job.phase_y[y]];
      rows.out[r] = out + y * out_row;
      for (int k = 0; k < 4; ++k) rows.ring[r][k] = scratch + (r * 4 + k) * c;
    }
    const int64_t at = job.first_x[0];
    if (job.up == 2) wide<PAST>(rows, job.wx[0], job.wx[1], job.phase_x[0] == 1, at, job.width, c, job.out_width);
    else if (job.down == 2) narrow<2, MIRROR, PAST>(rows, job.wx[0], at, job.width, c, job.out_width);
    else narrow<1, MIRROR, PAST>(rows, job.wx[0], at, job.width, c, job.out_width);
  }
}

void run(const LanesJob& job, const Units& units) {
  std::vector<float> memory(8 * job.c + 16);
  float* scratch = memory.data() + (16 - (reinterpret_cast<uintptr_t>(memory.data()) / 4) % 16) % 16;
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t image = unit / units.per_plane, y = unit % units.per_plane * units.rows;
    const int64_t end = y + units.rows < job.out_height ? y + units.rows : job.out_height;
    if (job.past_caches)
      job.mirror ? rows_of<true, true>(job, image, y, end, scratch) : rows_of<false, true>(job, image, y, end, scratch);
    else
      job.mirror ? rows_of<true, false>(job, image, y, end, scratch)
                 : rows_of<false, false>(job, image, y, end, scratch);
  }
  FENCE();
}
