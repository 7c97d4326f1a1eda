// y = clamp(gain * act(x + b), +-limit) on a dense tensor, which in memory is [outer, channels, inner] whatever its
// dimensions, their order and that of b are: the index along b's dimension is (offset / inner) % channels.
#pragma once
#include <cstdint>

#include "activation.h"

namespace eeg_gan {

struct BiasActLayout {
  int64_t outer, channels, inner;
};

enum BiasActOp { BIAS_ACT_FORWARD, BIAS_ACT_BACKWARD, BIAS_ACT_DOUBLE_BACKWARD };
enum BiasActType { BIAS_ACT_FLOAT, BIAS_ACT_DOUBLE, BIAS_ACT_BFLOAT16, BIAS_ACT_HALF };

// Tensors are in the type that is computed with (double for double, else float) where marked *.
struct BiasActTensors {
  const void *in;     // x, dy or the gradient of dx (may be null)
  const void *ref;    // x or y, from which the derivatives are told
  const void *dy;     // for the double backward, where out2 is wanted
  const void *bias;   // * may be null
  const void *ddb;    // * the gradient of db; may be null
  void *out, *out2;   // y; dx; the gradients of dy and of ref (out2 may be null)
  void *partial;      // * [bias_act_partial_rows, channels], where sums are wanted
  void *sums;         // * [channels]: of dx, or of the gradient of ref
};

}  // namespace eeg_gan

extern "C" int64_t eeg_gan_bias_act_partial_rows(int type, const eeg_gan::BiasActLayout* layout, int aligned);
extern "C" int eeg_gan_bias_act(int op, int type, const eeg_gan::BiasActLayout* layout, int aligned,
                                const eeg_gan::ActForm* form, const eeg_gan::BiasActTensors* tensors, void* stream);
