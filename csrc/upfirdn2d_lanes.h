// The case of the networks on a CPU: float32, channels_last, four separable taps, up or down by two or neither. Included
// once per instruction set, inside a namespace and under a target of its own (upfirdn2d.cpp), which define LANES and
// STREAM; hence no guard.
//
// Two output rows are made together, which share input rows, and some channels at a time: these walk along the row in
// registers, where the vertical sum of each input column is made once and goes into the results that it is part of.

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

// The input rows under ROWS output rows, and where the results go; all at the first channel of the block.
template <int UP, int DOWN, int ROWS, int NV>
struct Walk {
  static constexpr int TAPS = 4 / UP, SOURCES = UP == 2 ? 2 : TAPS + (ROWS - 1) * DOWN;
  const float* source[SOURCES];
  const float* wy[ROWS];
  float* out[ROWS];
  int64_t width, c;

  typedef Lanes Column[ROWS][NV];  // small enough for registers if touched element by element alone

  template <class F>
  static inline __attribute__((always_inline)) void each(const F& f) {
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < NV; ++i) f(r, i);
  }

  // The vertical sums of input column x, which is zero outside of the image.
  inline __attribute__((always_inline)) void column(int64_t x, Column& sums) const {
    if (x < 0 || x >= width) {
      each([&](int r, int i) __attribute__((always_inline)) { sums[r][i] = Lanes{}; });
      return;
    }
    const int64_t at = x * c;
    each([&](int r, int i) __attribute__((always_inline)) {
      const int first = UP == 2 ? 0 : r * DOWN;
      Lanes sum = wy[r][0] * load(source[first] + at + i * LANES);
#pragma GCC unroll 4
      for (int k = 1; k < TAPS; ++k) sum += wy[r][k] * load(source[first + k] + at + i * LANES);
      sums[r][i] = sum;
    });
  }

  static inline __attribute__((always_inline)) void move(const Column& from, Column& to) {
    each([&](int r, int i) __attribute__((always_inline)) { to[r][i] = from[r][i]; });
  }

  // Output m is a * v + b * w.
  template <bool PAST>
  inline __attribute__((always_inline)) void emit(float a, const Column& v, float b, const Column& w, int64_t m) const {
    each([&](int r, int i) __attribute__((always_inline)) {
      put<PAST>(out[r] + m * c + i * LANES, a * v[r][i] + b * w[r][i]);
    });
  }

  // Rows of `n` outputs; x is the first input column under them, w the taps of both phases.
  template <bool PAST>
  inline __attribute__((always_inline)) void run(const float* const* w, int64_t phase, int64_t x, int64_t n) const {
    Column a, b;
    column(x++, a), column(x++, b);
    if constexpr (UP == 2) {  // an odd output and the even one behind it have the same inputs
      const float e0 = w[0][0], e1 = w[0][1], o0 = w[1][0], o1 = w[1][1];
      int64_t m = 0;
      if (phase == 0) {
        emit<PAST>(e0, a, e1, b, m++);
        move(b, a), column(x++, b);
      }
      for (; m + 1 < n; m += 2) {
        emit<PAST>(o0, a, o1, b, m);
        emit<PAST>(e0, a, e1, b, m + 1);
        move(b, a), column(x++, b);
      }
      if (m < n) emit<PAST>(o0, a, o1, b, m);
      return;
    }
    const float f0 = w[0][0], f1 = w[0][1], f2 = w[0][2], f3 = w[0][3];
    Column d, newest;
    if constexpr (DOWN == 2) {
      each([&](int r, int i) __attribute__((always_inline)) { d[r][i] = f0 * a[r][i] + f1 * b[r][i]; });
      for (int64_t m = 0; m < n; ++m) {  // d is what an output has so far
        column(x++, a), column(x++, b);
        each([&](int r, int i) __attribute__((always_inline)) {
          put<PAST>(out[r] + m * c + i * LANES, d[r][i] + f2 * a[r][i] + f3 * b[r][i]);
          d[r][i] = f0 * a[r][i] + f1 * b[r][i];
        });
      }
    } else {
      column(x++, d);
      for (int64_t m = 0; m < n; ++m) {
        column(x++, newest);
        each([&](int r, int i) __attribute__((always_inline)) {
          put<PAST>(out[r] + m * c + i * LANES, f0 * a[r][i] + f1 * b[r][i] + f2 * d[r][i] + f3 * newest[r][i]);
        });
        move(b, a), move(d, b), move(newest, d);
      }
    }
  }
};

template <int UP, int DOWN, int ROWS, int NV, bool PAST>
void walk(const LanesJob& job, const float* x, float* out, int64_t m, int64_t k) {
  Walk<UP, DOWN, ROWS, NV> rows;
  rows.width = job.width, rows.c = job.c;
  for (int s = 0; s < rows.SOURCES; ++s) {
    const int64_t y = job.first_y[m] + s;
    rows.source[s] = (y < 0 || y >= job.height ? job.zeros : x + y * job.width * job.c) + k;
  }
  for (int r = 0; r < ROWS; ++r) {
    rows.wy[r] = job.wy[job.phase_y[m + r]];
    rows.out[r] = out + (m + r) * job.out_width * job.c + k;
  }
  rows.template run<PAST>(job.wx, job.phase_x[0], job.first_x[0], job.out_width);
}

template <int UP, int DOWN, int ROWS, bool PAST>
void walk_all(const LanesJob& job, const float* x, float* out, int64_t m) {
  int64_t k = 0;
  for (; k + BLOCK * LANES <= job.c; k += BLOCK * LANES) walk<UP, DOWN, ROWS, BLOCK, PAST>(job, x, out, m, k);
  for (; k < job.c; k += LANES) walk<UP, DOWN, ROWS, 1, PAST>(job, x, out, m, k);
}

template <int UP, int DOWN, bool PAST>
void image_rows(const LanesJob& job, int64_t image, int64_t y_begin, int64_t y_end) {
  const float* x = job.x + image * job.height * job.width * job.c;
  float* out = job.out + image * job.out_height * job.out_width * job.c;
  for (int64_t m = y_begin; m < y_end;) {
    const bool two = m + 1 < y_end && (UP == 1 || job.first_y[m] == job.first_y[m + 1]);
    two ? walk_all<UP, DOWN, 2, PAST>(job, x, out, m) : walk_all<UP, DOWN, 1, PAST>(job, x, out, m);
    m += two ? 2 : 1;
  }
}

template <bool PAST>
void images(const LanesJob& job, const Units& units) {
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t image = unit / units.per_plane, y = unit % units.per_plane * units.rows;
    const int64_t end = std::min(y + units.rows, job.out_height);
    if (job.up == 2) image_rows<2, 1, PAST>(job, image, y, end);
    else if (job.down == 2) image_rows<1, 2, PAST>(job, image, y, end);
    else image_rows<1, 1, PAST>(job, image, y, end);
  }
}

void run(const LanesJob& job, const Units& units) {
  if (!job.past_caches) return images<false>(job, units);
  images<true>(job, units);
  FENCE();
}
