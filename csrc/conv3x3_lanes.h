// The loops of conv3x3.cpp. Included once per instruction set, inside a namespace and under a target of its own, which
// defines LANES; hence no guard.
//
// One axis of F(4, 3): four outputs of a correlation with three taps from six inputs, by six products. With the points
// 0, +-a, +-b and infinity, y = A^T [(G g) * (B^T d)]; two axes nest. Any points do; those of the literature, a = 1 and
// b = 2, round four times as coarsely as a direct sum, these twice, and they are exact in binary.

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef float Memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE inline __attribute__((always_inline))

INLINE Lanes load(const float* p) { return *reinterpret_cast<const Memory*>(p); }
INLINE void store(float* p, Lanes v) { *reinterpret_cast<Memory*>(p) = v; }

constexpr float a = 0.625f, b = 1.5f, aa = a * a, bb = b * b;

// B^T of six values that lie `step` apart.
INLINE void to_points(const Lanes* d, Lanes* v, int from, int to) {
  const Lanes d0 = d[0], d1 = d[from], d2 = d[2 * from], d3 = d[3 * from], d4 = d[4 * from], d5 = d[5 * from];
  const Lanes even_a = d4 - bb * d2, odd_a = a * (d3 - bb * d1);
  const Lanes even_b = d4 - aa * d2, odd_b = b * (d3 - aa * d1);
  v[0] = aa * bb * d0 - (aa + bb) * d2 + d4;
  v[to] = even_a + odd_a;
  v[2 * to] = even_a - odd_a;
  v[3 * to] = even_b + odd_b;
  v[4 * to] = even_b - odd_b;
  v[5 * to] = aa * bb * d1 - (aa + bb) * d3 + d5;
}

// A^T of six values.
INLINE void from_points(const Lanes* m, Lanes* y, int from, int to) {
  const Lanes plus_a = m[from] + m[2 * from], minus_a = a * (m[from] - m[2 * from]);
  const Lanes plus_b = m[3 * from] + m[4 * from], minus_b = b * (m[3 * from] - m[4 * from]);
  y[0] = m[0] + plus_a + plus_b;
  y[to] = minus_a + minus_b;
  y[2 * to] = aa * plus_a + bb * plus_b;
  y[3 * to] = aa * minus_a + bb * minus_b + m[5 * from];
}

// A of four values, the transpose of the above.
INLINE void gradient_to_points(const Lanes* y, Lanes* z, int from, int to) {
  const Lanes even_a = y[0] + aa * y[2 * from], odd_a = a * (y[from] + aa * y[3 * from]);
  const Lanes even_b = y[0] + bb * y[2 * from], odd_b = b * (y[from] + bb * y[3 * from]);
  z[0] = y[0];
  z[to] = even_a + odd_a;
  z[2 * to] = even_a - odd_a;
  z[3 * to] = even_b + odd_b;
  z[4 * to] = even_b - odd_b;
  z[5 * to] = y[3 * from];
}

constexpr float at_0 = 1 / (aa * bb), at_a = 1 / (2 * aa * (aa - bb)), at_b = 1 / (2 * bb * (bb - aa));

// G of three taps.
INLINE void taps_to_points(const Lanes* g, Lanes* u, int from, int to) {
  const Lanes even_a = at_a * (g[0] + aa * g[2 * from]), odd_a = at_a * a * g[from];
  const Lanes even_b = at_b * (g[0] + bb * g[2 * from]), odd_b = at_b * b * g[from];
  u[0] = at_0 * g[0];
  u[to] = even_a + odd_a;
  u[2 * to] = even_a - odd_a;
  u[3 * to] = even_b + odd_b;
  u[4 * to] = even_b - odd_b;
  u[5 * to] = g[2 * from];
}

// G^T of six values.
INLINE void points_to_taps(const Lanes* u, Lanes* g, int from, int to) {
  const Lanes plus_a = at_a * (u[from] + u[2 * from]), plus_b = at_b * (u[3 * from] + u[4 * from]);
  g[0] = at_0 * u[0] + plus_a + plus_b;
  g[to] = at_a * a * (u[from] - u[2 * from]) + at_b * b * (u[3 * from] - u[4 * from]);
  g[2 * to] = aa * plus_a + bb * plus_b + u[5 * from];
}

// Sides of patches: 6 of inputs, 4 of outputs; a patch at (y, x) of an image [h, w, channels] is zero outside of it.
template <int SIDE>
INLINE void read_patch(const float* image, int64_t y, int64_t x, const Conv3x3& job, int64_t channels, Lanes* patch) {
  if (y >= 0 && x >= 0 && y + SIDE <= job.h && x + SIDE <= job.w) {
    const float* corner = image + (y * job.w + x) * channels;
#pragma GCC unroll 6
    for (int i = 0; i < SIDE; ++i)
#pragma GCC unroll 6
      for (int j = 0; j < SIDE; ++j) patch[i * SIDE + j] = load(corner + (i * job.w + j) * channels);
    return;
  }
  for (int i = 0; i < SIDE; ++i)
    for (int j = 0; j < SIDE; ++j) {
      const bool inside = y + i >= 0 && y + i < job.h && x + j >= 0 && x + j < job.w;
      patch[i * SIDE + j] = inside ? load(image + ((y + i) * job.w + x + j) * channels) : Lanes{};
    }
}

struct Place {
  int64_t image, y, x;
};

INLINE Place place_of(int64_t tile, const Conv3x3& job) {
  const int64_t per_image = job.tiles_y * job.tiles_x, inside = tile % per_image;
  return {tile / per_image, inside / job.tiles_x * 4, inside % job.tiles_x * 4};
}

// Tiles [first, first + count) of x as [36, stride, c]: what each product reads.
INLINE void transform_inputs(const Conv3x3& job, int64_t first, int64_t count, int64_t stride, float* v) {
  for (int64_t t = 0; t < count; ++t) {
    const Place at = place_of(first + t, job);
    for (int64_t k = 0; k < job.c; k += LANES) {
      Lanes patch[36], half[36];
      read_patch<6>(job.x + at.image * job.h * job.w * job.c + k, at.y - 1, at.x - 1, job, job.c, patch);
      for (int j = 0; j < 6; ++j) to_points(patch + j, half + j, 6, 6);
      for (int i = 0; i < 6; ++i) {
        Lanes out[6];
        to_points(half + 6 * i, out, 1, 1);
        for (int j = 0; j < 6; ++j) store(v + ((6 * i + j) * stride + t) * job.c + k, out[j]);
      }
    }
  }
}

INLINE void transform_gradients(const Conv3x3& job, int64_t first, int64_t count, int64_t stride, float* z) {
  for (int64_t t = 0; t < count; ++t) {
    const Place at = place_of(first + t, job);
    for (int64_t k = 0; k < job.o; k += LANES) {
      Lanes patch[16], half[24];
      read_patch<4>(job.dy + at.image * job.h * job.w * job.o + k, at.y, at.x, job, job.o, patch);
      for (int j = 0; j < 4; ++j) gradient_to_points(patch + j, half + j, 4, 4);
      for (int i = 0; i < 6; ++i) {
        Lanes out[6];
        gradient_to_points(half + 4 * i, out, 1, 1);
        for (int j = 0; j < 6; ++j) store(z + ((6 * i + j) * stride + t) * job.o + k, out[j]);
      }
    }
  }
}

constexpr int ROWS = LANES == 16 ? 8 : 4;  // of results that stay in registers, two vectors wide

// c[r][0..2 LANES) (+)= sum_k left(r, k) right[k][0..2 LANES); left(r, k) is at left[r * row + k * next].
template <bool ADD>
INLINE void product(const float* left, int64_t row, int64_t next, const float* right, int64_t right_row, int64_t n,
                    float* c, int64_t c_row) {
  Lanes sums[ROWS][2];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < 2; ++i) sums[r][i] = ADD ? load(c + r * c_row + i * LANES) : Lanes{};
  for (int64_t k = 0; k < n; ++k, left += next, right += right_row) {
    const Lanes r0 = load(right), r1 = load(right + LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const float l = left[r * row];
      sums[r][0] += l * r0, sums[r][1] += l * r1;
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < 2; ++i) store(c + r * c_row + i * LANES, sums[r][i]);
}

INLINE void write_outputs(const Conv3x3& job, int64_t first, int64_t count, int64_t channel, const float* m) {
  for (int64_t t = 0; t < count; ++t) {
    const Place at = place_of(first + t, job);
    for (int k = 0; k < 2 * LANES; k += LANES) {
      Lanes points[36], half[24], out[16];
      for (int p = 0; p < 36; ++p) points[p] = load(m + (p * BLOCK + t) * 2 * LANES + k);
      for (int j = 0; j < 6; ++j) from_points(points + j, half + j, 6, 6);
      for (int i = 0; i < 4; ++i) from_points(half + 6 * i, out + 4 * i, 1, 1);
      float* y = job.y + ((at.image * job.h + at.y) * job.w + at.x) * job.o + channel + k;
      const int64_t rows = std::min<int64_t>(4, job.h - at.y), columns = std::min<int64_t>(4, job.w - at.x);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) store(y + (i * job.w + j) * job.o, out[4 * i + j]);
    }
  }
}

// Outputs of one block of tiles; `u` is [o / (2 LANES), 36, c, 2 LANES].
void forward_block(const Conv3x3& job, const float* u, int64_t block, float* v, float* m) {
  const int64_t first = block * BLOCK, count = std::min<int64_t>(BLOCK, job.tiles - first);
  transform_inputs(job, first, count, BLOCK, v);
  for (int64_t channel = 0; channel < job.o; channel += 2 * LANES) {
    for (int p = 0; p < 36; ++p) {
      const float* right = u + (channel / (2 * LANES) * 36 + p) * job.c * 2 * LANES;
      for (int64_t t = 0; t < count; t += ROWS)
        product<false>(v + (p * BLOCK + t) * job.c, job.c, 1, right, 2 * LANES, job.c,
                       m + (p * BLOCK + t) * 2 * LANES, 2 * LANES);
    }
    write_outputs(job, first, count, channel, m);
  }
}

// Weights [o, c, 3, 3] of 2 LANES outputs at the points.
void transform_weights(const Conv3x3& job, int64_t channel, float* u) {
  for (int64_t k = 0; k < job.c; ++k)
    for (int i = 0; i < 2 * LANES; i += LANES) {
      Lanes taps[9], half[18];
      for (int q = 0; q < 9; ++q)
        for (int l = 0; l < LANES; ++l) taps[q][l] = job.weight[((channel + i + l) * job.c + k) * 9 + q];
      for (int j = 0; j < 3; ++j) taps_to_points(taps + j, half + j, 3, 3);
      for (int r = 0; r < 6; ++r) {
        Lanes out[6];
        taps_to_points(half + 3 * r, out, 1, 1);
        for (int j = 0; j < 6; ++j) store(u + ((6 * r + j) * job.c + k) * 2 * LANES + i, out[j]);
      }
    }
}

void points_of_inputs(const Conv3x3& job, int64_t begin, int64_t first, int64_t count, float* v) {
  transform_inputs(job, begin + first, count, SUPER, v + first * job.c);
}
void points_of_gradients(const Conv3x3& job, int64_t begin, int64_t first, int64_t count, float* z) {
  transform_gradients(job, begin + first, count, SUPER, z + first * job.o);
}

// Adds to one point's [c, o] what `count` tiles give.
void add_products(const Conv3x3& job, const float* v, const float* z, int64_t count, float* sums) {
  for (int64_t channel = 0; channel < job.o; channel += 2 * LANES)
    for (int64_t k = 0; k < job.c; k += ROWS)
      product<true>(v + k, 1, job.c, z + channel, job.o, count, sums + k * job.o + channel, job.o);
}

// The weight's gradient [o, c, 3, 3] of one input channel from sums [36, c, o].
void write_weights(const Conv3x3& job, const float* sums, int64_t k) {
  for (int64_t channel = 0; channel < job.o; channel += LANES) {
    Lanes points[36], half[18], taps[9];
    for (int p = 0; p < 36; ++p) points[p] = load(sums + (p * job.c + k) * job.o + channel);
    for (int j = 0; j < 6; ++j) points_to_taps(points + j, half + j, 6, 6);
    for (int i = 0; i < 3; ++i) points_to_taps(half + 6 * i, taps + 3 * i, 1, 1);
    for (int q = 0; q < 9; ++q)
      for (int l = 0; l < LANES; ++l) job.y[((channel + l) * job.c + k) * 9 + q] = taps[q][l];
  }
}

#undef INLINE
#undef LANES
