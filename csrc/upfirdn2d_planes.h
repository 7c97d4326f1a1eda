// The other case of the networks on a CPU: float32, contiguous planes, four separable taps, up or down by two or none.
// Included as upfirdn2d_lanes.h is and after it: LANES, STREAM, the masks LOW, HIGH, EVEN, ODD and ORDERED are defined
// around it.
//
// Input rows are summed vertically into a block of lines that stays in the first cache, one for each output row, and
// these horizontally. A block, and not line by line: what was just stored, and is loaded shifted by a column, has to
// arrive in the cache first. Columns outside of the image are zero in the lines once and for all.

struct LineJob {
  const LanesJob* job;
  int64_t columns, left, right;  // of a line; those within the image are [left, right)
  int64_t shift;                 // from a column of the line to one of the image
  int64_t pitch, lines;
  float* memory;                 // column 0 of the first line; column `left` is aligned
};

// Memory is asked for the next block's rows, and as many values more, while the lines of this one are filtered: else it
// would have nothing to do meanwhile.
constexpr int64_t AHEAD = 1024;

// The same number in all lanes. Numbers are spread before a loop: within it each would be loaded again after each store
// as that might have changed it.
inline __attribute__((always_inline)) Lanes spread(float v) { return Lanes{} + v; }

template <int TAPS>
inline __attribute__((always_inline)) void sum_rows(const float* const* rows, const float* w, float* to, int64_t n) {
  const float* source[TAPS];
  Lanes weights[TAPS];
#pragma GCC unroll 4
  for (int k = 0; k < TAPS; ++k) source[k] = rows[k], weights[k] = spread(w[k]);
  const auto at = [&](int64_t i) __attribute__((always_inline)) {
    Lanes sum = weights[0] * load(source[0] + i);
#pragma GCC unroll 4
    for (int k = 1; k < TAPS; ++k) sum += weights[k] * load(source[k] + i);
    store(to + i, sum);
  };
  if (n < LANES) {
    for (int64_t i = 0; i < n; ++i) {
      float sum = w[0] * rows[0][i];
      for (int k = 1; k < TAPS; ++k) sum += w[k] * rows[k][i];
      to[i] = sum;
    }
    return;
  }
  for (int64_t i = 0; i + LANES <= n; i += LANES) at(i);
  if (n % LANES) at(n - LANES);  // some sums twice
}

// v, or as much of it as the row still takes: less only where the row ends.
inline __attribute__((always_inline)) void put_some(float* p, Lanes v, int64_t room) {
  if (room >= LANES) return store(p, v);
  for (int64_t i = 0; i < room; ++i) p[i] = v[i];
}

// The horizontal filters. w: four taps, or those of the first of two outputs and then those of the second.
struct Wide {
  Lanes w[4];

  template <bool PAST>
  inline __attribute__((always_inline)) void twice(const float* t, int64_t step, float* out, int64_t n) const {
    const auto pair = [&](int64_t m, Lanes& low, Lanes& high) __attribute__((always_inline)) {
      const float *even = t + m / 2, *odd = even + step;
      const Lanes a = w[0] * load(even) + w[1] * load(even + 1), b = w[2] * load(odd) + w[3] * load(odd + 1);
      low = SHUFFLE(a, b, LOW), high = SHUFFLE(a, b, HIGH);
    };
    Lanes low, high;
    int64_t m = 0;
    for (; m + 2 * LANES <= n; m += 2 * LANES) {
      pair(m, low, high);
      put<PAST>(out + m, low), put<PAST>(out + m + LANES, high);
    }
    if (m == n) return;
    pair(m, low, high);
    put_some(out + m, low, n - m), put_some(out + m + LANES, high, n - m - LANES);
  }

  template <bool PAST>
  inline __attribute__((always_inline)) void half(const float* t, float* out, int64_t n) const {
    const auto sum = [&](int64_t m) __attribute__((always_inline)) {
      const float* s = t + 2 * m;
      const Lanes a = load(s), b = load(s + LANES), c = load(s + 2), d = load(s + 2 + LANES);
      const Lanes first = w[0] * SHUFFLE(a, b, EVEN) + w[1] * SHUFFLE(a, b, ODD);
      const Lanes all = first + w[2] * SHUFFLE(c, d, EVEN) + w[3] * SHUFFLE(c, d, ODD);
      return ORDERED(all);
    };
    int64_t m = 0;
    for (; m + LANES <= n; m += LANES) put<PAST>(out + m, sum(m));
    if (m < n) put_some(out + m, sum(m), n - m);
  }

  template <bool PAST>
  inline __attribute__((always_inline)) void same(const float* t, float* out, int64_t n) const {
    const auto sum = [&](const float* s) __attribute__((always_inline)) {
      return w[0] * load(s) + w[1] * load(s + 1) + w[2] * load(s + 2) + w[3] * load(s + 3);
    };
    int64_t m = 0;
    for (; m + LANES <= n; m += LANES) put<PAST>(out + m, sum(t + m));
    if (m < n) put_some(out + m, sum(t + m), n - m);
  }
};

inline void sum_to_lines(const LineJob& line, const float* x, int64_t y_begin, int64_t y_end) {
  const LanesJob& job = *line.job;
  const int taps = job.up == 2 ? 2 : 4;
  const int64_t n = line.right - line.left;
  float* to = line.memory + line.left;
  for (int64_t m = y_begin; m < y_end; ++m, to += line.pitch) {
    const float* rows[4];
    for (int k = 0; k < taps; ++k) {
      const int64_t y = job.first_y[m] + k;
      rows[k] = (y < 0 || y >= job.height ? job.zeros : x + y * job.width) + line.left + line.shift;
    }
    const float* w = job.wy[job.phase_y[m]];
    taps == 2 ? sum_rows<2>(rows, w, to, n) : sum_rows<4>(rows, w, to, n);
  }
}

template <bool PAST>
void plane_rows(const LineJob& line, int64_t plane, int64_t y_begin, int64_t y_end) {
  const LanesJob& job = *line.job;
  const int64_t n = job.out_width, phase = job.phase_x[0];
  const float *first = job.wx[phase], *second = job.up == 2 ? job.wx[1 - phase] : first + 2;
  const Wide wide{{spread(first[0]), spread(first[1]), spread(second[0]), spread(second[1])}};
  const float* x = job.x + plane * job.height * job.width;
  const int64_t block = line.lines * job.down / job.up, per_row = job.width * job.down / job.up;  // of the input
  float* out = job.out + (plane * job.out_height + y_begin) * n;
  for (int64_t y = y_begin; y < y_end; y += line.lines) {
    const int64_t end = std::min(y + line.lines, y_end);
    sum_to_lines(line, x, y, end);
    const float* t = line.memory;
    const float* next = x + (job.first_y[y] + block) * job.width + AHEAD;
    for (int64_t m = y; m < end; ++m, t += line.pitch, out += n) {
      for (const float* p = next; p < next + per_row; p += 16) __builtin_prefetch(p, 0, 2);
      next += per_row;
      if (job.up == 2) wide.twice<PAST>(t, 1 - phase, out, n);
      else if (job.down == 2) wide.half<PAST>(t, out, n);
      else wide.same<PAST>(t, out, n);
    }
  }
}

void run_planes(const LanesJob& job, const Units& units) {
  // whole steps read beyond what they need
  LineJob line{&job, (job.out_width + 2 * LANES) * job.down / job.up + 4 * LANES, 0, 0, job.first_x[0], 0, 0, nullptr};
  line.left = std::clamp<int64_t>(-line.shift, 0, line.columns);
  line.right = std::clamp<int64_t>(job.width - line.shift, line.left, line.columns);
  line.pitch = (line.columns + 15) / 16 * 16;
  line.lines = std::clamp<int64_t>(4096 / line.pitch, 1, units.rows);
  std::vector<float> memory(line.lines * line.pitch + 16);
  line.memory = memory.data() + (32 - (reinterpret_cast<uintptr_t>(memory.data()) / 4 + line.left) % 16) % 16;
  const bool past = job.past_caches && job.out_width % LANES == 0;
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t plane = unit / units.per_plane, y = unit % units.per_plane * units.rows;
    const int64_t end = std::min(y + units.rows, job.out_height);
    past ? plane_rows<true>(line, plane, y, end) : plane_rows<false>(line, plane, y, end);
  }
  if (past) FENCE();
}
