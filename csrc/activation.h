// The nine activations with their first and second derivatives, for the CPU (where a loop over them vectorises) and for
// CUDA. Seven kinds are enough: linear is lrelu with slope 1, and selu is elu with its own alpha and gain.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__) || defined(EEG_GAN_SIMULATED)
#define EEG_GAN_ACT static __device__ __forceinline__
#else
#define EEG_GAN_ACT static inline __attribute__((always_inline))
#endif

namespace eeg_gan {

enum Activation { LINEAR, RELU, LRELU, TANH, SIGMOID, ELU, SELU, SOFTPLUS, SWISH };

struct ActForm {
  int act;                     // never LINEAR or SELU
  bool by_x;                   // derivatives are told from u = x + b; otherwise from y
  double alpha, gain, limit;   // limit < 0: no clamp
};

inline ActForm act_form(int act, double alpha, double gain, double limit, bool by_x) {
  if (act == LINEAR) return {LRELU, by_x, 1.0, gain, limit};
  if (act == SELU) return {ELU, by_x, 1.6732632423543772, gain * 1.0507009873554805, limit};
  return {act, by_x, alpha, gain, limit};
}

template <class T>
struct ActNumbers {
  T alpha, gain, inverse, limit;
  int clamped;
  explicit ActNumbers(const ActForm& f)
      : alpha(T(f.alpha)), gain(T(f.gain)), inverse(T(1 / f.gain)), limit(f.limit < 0 ? T(INFINITY) : T(f.limit)),
        clamped(f.limit >= 0) {}
};

namespace math {

#if defined(__CUDACC__) || defined(EEG_GAN_SIMULATED)
EEG_GAN_ACT float exp(float x) { return ::expf(x); }
EEG_GAN_ACT float expm1(float x) { return ::expm1f(x); }
EEG_GAN_ACT float log1p(float x) { return ::log1pf(x); }
#else
// Without branches and calls, so that a loop vectorises; within 2 units in the last place; NaN and infinity as libm's.
EEG_GAN_ACT float power_of_two(int32_t n) {
  const int32_t bits = (n + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return scale;
}

// x = n ln 2 + r with |r| <= ln 2 / 2; returns exp(r) - 1
EEG_GAN_ACT float reduced(float x, int32_t* n) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which is in the low bits then
  const float shifted = x * 1.44269504f + magic;
  int32_t bits, zero;
  std::memcpy(&bits, &shifted, 4);
  std::memcpy(&zero, &magic, 4);
  *n = bits - zero;
  const float k = shifted - magic;
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;  // the first product is exact
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  return p * r * r + r;
}

EEG_GAN_ACT float exp(float x) {
  float z = x < -104.0f ? -104.0f : x;
  z = z > 89.0f ? 89.0f : z;
  int32_t n;
  const float p = reduced(z, &n) + 1.0f;
  const int32_t half = n >> 1;  // in two steps: 2^128 is not a float, nor is 2^-150
  return p * power_of_two(half) * power_of_two(n - half);
}

// for x <= 0
EEG_GAN_ACT float expm1(float x) {
  int32_t n;
  const float p = reduced(x < -30.0f ? -30.0f : x, &n);
  const float scale = power_of_two(n);
  const float result = scale * p + (scale - 1.0f);
  return x > -1e-6f ? x : result;  // keeps the sign of zero
}

// for 0 <= x <= 1: 2 artanh(x / (2 + x)) by its series
EEG_GAN_ACT float log1p(float x) {
  const float s = x / (2.0f + x), q = s * s;
  float p = 1.0f / 17;
  p = p * q + 1.0f / 15;
  p = p * q + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  return 2.0f * (s + s * q * p);
}
#endif

EEG_GAN_ACT double exp(double x) { return ::exp(x); }
EEG_GAN_ACT double expm1(double x) { return ::expm1(x); }
EEG_GAN_ACT double log1p(double x) { return ::log1p(x); }

template <class T>
EEG_GAN_ACT T tanh(T x) {
  const T e = expm1(T(-2) * (x < T(0) ? -x : x));
  const T magnitude = -e / (e + T(2));
  return x < T(0) ? -magnitude : magnitude;
}

template <class T>
EEG_GAN_ACT T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

}  // namespace math

template <int ACT, class T>
EEG_GAN_ACT T act_value(T u, T alpha) {
  if constexpr (ACT == RELU) return u < T(0) ? T(0) : u;
  if constexpr (ACT == LRELU) {
    const T below = alpha * u;
    return u > T(0) ? u : below;
  }
  if constexpr (ACT == TANH) return math::tanh(u);
  if constexpr (ACT == SIGMOID) return math::sigmoid(u);
  if constexpr (ACT == ELU) {
    const T below = alpha * math::expm1(u > T(0) ? T(0) : u);
    return u > T(0) ? u : below;
  }
  if constexpr (ACT == SOFTPLUS) return (u > T(0) ? u : T(0)) + math::log1p(math::exp(u > T(0) ? -u : u));
  if constexpr (ACT == SWISH) return u / (T(1) + math::exp(-u));
}

// The first derivative, from a = act(u); of u only the sign is used, which is that of a where alpha > 0. Only swish
// needs u itself.
template <int ACT, class T>
EEG_GAN_ACT T act_slope(T u, T a, T alpha) {
  if constexpr (ACT == RELU) return u <= T(0) ? T(0) : T(1);
  if constexpr (ACT == LRELU) return u > T(0) ? T(1) : alpha;
  if constexpr (ACT == TANH) return T(1) - a * a;
  if constexpr (ACT == SIGMOID) return a * (T(1) - a);
  if constexpr (ACT == ELU) {
    const T below = a + alpha;
    return u > T(0) ? T(1) : below;
  }
  if constexpr (ACT == SOFTPLUS) return -math::expm1(-a);
  if constexpr (ACT == SWISH) {
    const T s = math::sigmoid(u);
    return s * (T(1) + u * (T(1) - s));
  }
}

// How the slope changes with a; times the slope it is the second derivative. For swish: how it changes with u.
template <int ACT, class T>
EEG_GAN_ACT T act_bend(T u, T a, T alpha) {
  if constexpr (ACT == RELU || ACT == LRELU) return T(0);
  if constexpr (ACT == TANH) return T(-2) * a;
  if constexpr (ACT == SIGMOID) return T(1) - T(2) * a;
  if constexpr (ACT == ELU) return u > T(0) ? T(0) : T(1);
  if constexpr (ACT == SOFTPLUS) return math::exp(-a);
  if constexpr (ACT == SWISH) {
    const T s = math::sigmoid(u);
    return s * (T(1) - s) * (T(2) + u * (T(1) - T(2) * s));
  }
}

template <int ACT, class T>
EEG_GAN_ACT T bias_act_forward(T x, T b, const ActNumbers<T>& f) {
  const T y = f.gain * act_value<ACT>(x + b, f.alpha);
  const T low = y < -f.limit ? -f.limit : y;
  return low > f.limit ? f.limit : low;
}

// dx for the gradient dy of y, where ref is x or y
template <int ACT, bool BY_X, class T>
EEG_GAN_ACT T bias_act_backward(T dy, T ref, T b, const ActNumbers<T>& f) {
  const T u = BY_X ? ref + b : ref * f.inverse;
  const T a = BY_X ? act_value<ACT>(u, f.alpha) : u;
  const T y = BY_X ? f.gain * a : ref;
  const T dx = dy * f.gain * act_slope<ACT>(u, a, f.alpha);
  const int inside = ((y < T(0) ? -y : y) < f.limit) | !f.clamped;
  return inside ? dx : T(0);
}

// dx is a function of dy and ref; for the gradient v of dx: that of dy, and that of ref in *dref
template <int ACT, bool BY_X, class T>
EEG_GAN_ACT T bias_act_double_backward(T v, T dy, T ref, T b, const ActNumbers<T>& f, T* dref) {
  const T u = BY_X ? ref + b : ref * f.inverse;
  const T a = BY_X ? act_value<ACT>(u, f.alpha) : u;
  const T y = BY_X ? f.gain * a : ref;
  const T slope = act_slope<ACT>(u, a, f.alpha);
  T bend = act_bend<ACT>(u, a, f.alpha);
  if (BY_X) bend *= ACT == SWISH ? f.gain : f.gain * slope;
  const T first = v * f.gain * slope, second = v * dy * bend;
  const int inside = ((y < T(0) ? -y : y) < f.limit) | !f.clamped;
  *dref = inside ? second : T(0);
  return inside ? first : T(0);
}

}  // namespace eeg_gan
