// Numbers as they lie in memory: half types are held as their bits, and computed with in float32. Without branches, so
// that loops vectorise without the processor's own instructions too.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>

#include "check.h"

namespace eeg_gan {
namespace {

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

EEG_GAN_INLINE float load(float v) { return v; }
EEG_GAN_INLINE double load(double v) { return v; }
EEG_GAN_INLINE float load(BFloat16 v) { return std::bit_cast<float>(uint32_t(v.bits) << 16); }
EEG_GAN_INLINE float load(Float16 v) {
  const uint32_t w = uint32_t(v.bits) << 16, twice = w + w;
  const float normal = std::bit_cast<float>((twice >> 4) + (0xE0u << 23)) * 0x1p-112f;
  const float subnormal = std::bit_cast<float>((twice >> 17) | (126u << 23)) - 0.5f;
  const uint32_t bits = std::bit_cast<uint32_t>(twice < (1u << 27) ? subnormal : normal);
  return std::bit_cast<float>((w & 0x80000000u) | bits);
}
EEG_GAN_INLINE void store(float* p, float v) { *p = v; }
EEG_GAN_INLINE void store(double* p, double v) { *p = v; }
EEG_GAN_INLINE void store(BFloat16* p, float v) {  // to the nearest, ties to even
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  p->bits = uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}
EEG_GAN_INLINE void store(Float16* p, float v) {  // to the nearest, ties to even, by adding a number of the right size
  const uint32_t w = std::bit_cast<uint32_t>(v), sign = (w >> 16) & 0x8000u, magnitude = w & 0x7FFFFFFFu;
  const float scaled = (std::bit_cast<float>(magnitude) * 0x1p112f) * 0x1p-110f;
  const uint32_t exponent = std::max((w + w) & 0xFF000000u, 0x71000000u);
  const uint32_t bits = std::bit_cast<uint32_t>(scaled + std::bit_cast<float>((exponent >> 1) + 0x07800000u));
  const uint32_t half = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu);
  p->bits = uint16_t(sign | (magnitude > 0x7F800000u ? 0x7E00u : half));
}

}  // namespace
}  // namespace eeg_gan
