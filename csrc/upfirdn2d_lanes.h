// The case of the networks on a CPU: float32, channels_last, four separable taps, up or down by two or neither. Included
// once per instruction set, inside a namespace and under a target of its own (upfirdn2d_sets.h), which define LANES and
// STREAM; hence no guard.
//
// Two output rows are made together, which share input rows, and in the order of memory, pixel by pixel with all
// channels: the processor foresees no other. The vertical sum of each input column is made once and goes into the
// results that it is part of; what they have so far stays in the first cache.

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef float Memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline __attribute__((always_inline)) Lanes load(const float* p) { return *reinterpret_cast<const Memory*>(p); }
inline __attribute__((always_inline)) void store(float* p, Lanes v) { *reinterpret_cast<Memory*>(p) = v; }
template <bool PAST_CACHES>
inline __attribute__((always_inline)) void put(float* p, Lanes v) {
  if constexpr (PAST_CACHES) STREAM(p, v);
  else store(p, v);
}

constexpr int BLOCK = LANES == 8 ? 2 : 4;  // vectors of channels at a time: as many as registers hold

// The input rows under ROWS output rows, where the results go, and what is kept from column to column.
template <int UP, int DOWN, int ROWS>
struct Walk {
  static constexpr int TAPS = 4 / UP, SOURCES = UP == 2 ? 2 : TAPS + (ROWS - 1) * DOWN;
  const float* source[SOURCES];
  const float* wy[ROWS];
  float* out[ROWS];
  float* kept;  // up to three columns of ROWS times c values
  int64_t width, c;

  // A block of channels of one column; small enough for registers if touched element by element alone.
  template <int NV>
  using Column = Lanes[ROWS][NV];

  template <int NV, class F>
  static inline __attribute__((always_inline)) void each(const F& f) {
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < NV; ++i) f(r, i);
  }

  // The vertical sums of input column x from channel k on; it is zero outside of the image.
  template <int NV>
  inline __attribute__((always_inline)) void column(int64_t x, int64_t k, Column<NV>& sums) const {
    if (x < 0 || x >= width) {
      each<NV>([&](int r, int i) __attribute__((always_inline)) { sums[r][i] = Lanes{}; });
      return;
    }
    const int64_t at = x * c + k;
    each<NV>([&](int r, int i) __attribute__((always_inline)) {
      const int first = UP == 2 ? 0 : r * DOWN;
      Lanes sum = wy[r][0] * load(source[first] + at + i * LANES);
#pragma GCC unroll 4
      for (int t = 1; t < TAPS; ++t) sum += wy[r][t] * load(source[first + t] + at + i * LANES);
      sums[r][i] = sum;
    });
  }

  inline __attribute__((always_inline)) float* place(int which, int r, int i, int64_t k) const {
    return kept + (which * ROWS + r) * c + k + i * LANES;
  }
  template <bool PAST>
  inline __attribute__((always_inline)) void emit(int r, int i, int64_t m, int64_t k, Lanes v) const {
    put<PAST>(out[r] + m * c + k + i * LANES, v);
  }

  // f(k, block) for all channels, in blocks of BLOCK vectors and of one
  template <class F>
  inline __attribute__((always_inline)) void all(const F& f) const {
    int64_t k = 0;
    for (; k + BLOCK * LANES <= c; k += BLOCK * LANES) f(k, std::integral_constant<int, BLOCK>());
    for (; k < c; k += LANES) f(k, std::integral_constant<int, 1>());
  }

  // Outputs m and, if both, m + 1, which have the same two inputs: of which x is the second and the first is kept.
  template <bool PAST, bool BOTH>
  inline __attribute__((always_inline)) void step_up(const float* v, const float* w, int64_t x, int64_t m) const {
    const float v0 = v[0], v1 = v[1], w0 = w[0], w1 = w[1];
    all([&](int64_t k, auto block) __attribute__((always_inline)) {
      constexpr int NV = decltype(block)::value;
      Column<NV> b;
      column<NV>(x, k, b);
      each<NV>([&](int r, int i) __attribute__((always_inline)) {
        const Lanes a = load(place(0, r, i, k));
        emit<PAST>(r, i, m, k, v0 * a + v1 * b[r][i]);
        if constexpr (BOTH) emit<PAST>(r, i, m + 1, k, w0 * a + w1 * b[r][i]);
        store(place(0, r, i, k), b[r][i]);
      });
    });
  }

  template <bool PAST>
  inline __attribute__((always_inline)) void run_up(const float* const* w, int64_t phase, int64_t x, int64_t n) const {
    all([&](int64_t k, auto block) __attribute__((always_inline)) {
      constexpr int NV = decltype(block)::value;
      Column<NV> a;
      column<NV>(x, k, a);
      each<NV>([&](int r, int i) __attribute__((always_inline)) { store(place(0, r, i, k), a[r][i]); });
    });
    int64_t m = 0;
    ++x;
    if (phase == 0) step_up<PAST, false>(w[0], w[0], x++, m++);  // an odd output and the next have the same inputs
    for (; m + 1 < n; m += 2) step_up<PAST, true>(w[1], w[0], x++, m);
    if (m < n) step_up<PAST, false>(w[1], w[1], x, m);
  }

  // Keeps the first half of each result.
  template <bool PAST>
  inline __attribute__((always_inline)) void run_down(const float* w, int64_t x, int64_t n) const {
    const float f0 = w[0], f1 = w[1], f2 = w[2], f3 = w[3];
    for (int64_t m = -1; m < n; ++m, x += 2) {
      all([&](int64_t k, auto block) __attribute__((always_inline)) {
        constexpr int NV = decltype(block)::value;
        Column<NV> a, b;
        column<NV>(x, k, a), column<NV>(x + 1, k, b);
        each<NV>([&](int r, int i) __attribute__((always_inline)) {
          float* half = place(0, r, i, k);
          if (m >= 0) emit<PAST>(r, i, m, k, load(half) + f2 * a[r][i] + f3 * b[r][i]);
          store(half, f0 * a[r][i] + f1 * b[r][i]);
        });
      });
    }
  }

  // Keeps the sums of one, two and three columns that the next three results have so far.
  template <bool PAST>
  inline __attribute__((always_inline)) void run_same(const float* w, int64_t x, int64_t n) const {
    const float f0 = w[0], f1 = w[1], f2 = w[2], f3 = w[3];
    std::fill_n(kept, 3 * ROWS * c, 0.0f);
    for (int64_t m = -3; m < n; ++m, ++x) {
      all([&](int64_t k, auto block) __attribute__((always_inline)) {
        constexpr int NV = decltype(block)::value;
        Column<NV> a;
        column<NV>(x, k, a);
        each<NV>([&](int r, int i) __attribute__((always_inline)) {
          float *three = place(0, r, i, k), *two = place(1, r, i, k), *one = place(2, r, i, k);
          if (m >= 0) emit<PAST>(r, i, m, k, load(three) + f3 * a[r][i]);
          store(three, load(two) + f2 * a[r][i]);
          store(two, load(one) + f1 * a[r][i]);
          store(one, f0 * a[r][i]);
        });
      });
    }
  }
};

template <int UP, int DOWN, int ROWS, bool PAST>
void walk(const LanesJob& job, const float* x, float* out, int64_t m, float* kept) {
  Walk<UP, DOWN, ROWS> rows;
  rows.width = job.width, rows.c = job.c, rows.kept = kept;
  for (int s = 0; s < rows.SOURCES; ++s) {
    const int64_t y = job.first_y[m] + s;
    rows.source[s] = y < 0 || y >= job.height ? job.zeros : x + y * job.width * job.c;
  }
  for (int r = 0; r < ROWS; ++r) {
    rows.wy[r] = job.wy[job.phase_y[m + r]];
    rows.out[r] = out + (m + r) * job.out_width * job.c;
  }
  const int64_t first = job.first_x[0];
  if constexpr (UP == 2) rows.template run_up<PAST>(job.wx, job.phase_x[0], first, job.out_width);
  else if constexpr (DOWN == 2) rows.template run_down<PAST>(job.wx[0], first, job.out_width);
  else rows.template run_same<PAST>(job.wx[0], first, job.out_width);
}

template <int UP, int DOWN, bool PAST>
void image_rows(const LanesJob& job, int64_t image, int64_t y_begin, int64_t y_end, float* kept) {
  const float* x = job.x + image * job.height * job.width * job.c;
  float* out = job.out + image * job.out_height * job.out_width * job.c;
  for (int64_t m = y_begin; m < y_end;) {
    const bool two = m + 1 < y_end && (UP == 1 || job.first_y[m] == job.first_y[m + 1]);
    two ? walk<UP, DOWN, 2, PAST>(job, x, out, m, kept) : walk<UP, DOWN, 1, PAST>(job, x, out, m, kept);
    m += two ? 2 : 1;
  }
}

template <bool PAST>
void images(const LanesJob& job, const Units& units) {
  std::vector<float> memory(6 * job.c + 16);
  float* kept = memory.data() + (16 - (reinterpret_cast<uintptr_t>(memory.data()) / 4) % 16) % 16;
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t image = unit / units.per_plane, y = unit % units.per_plane * units.rows;
    const int64_t end = std::min(y + units.rows, job.out_height);
    if (job.up == 2) image_rows<2, 1, PAST>(job, image, y, end, kept);
    else if (job.down == 2) image_rows<1, 2, PAST>(job, image, y, end, kept);
    else image_rows<1, 1, PAST>(job, image, y, end, kept);
  }
}

void run(const LanesJob& job, const Units& units) {
  if (!job.past_caches) return images<false>(job, units);
  images<true>(job, units);
  FENCE();
}
