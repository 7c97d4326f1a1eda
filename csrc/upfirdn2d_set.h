// Both kernels for one instruction set, whose macros end here; included once for each by upfirdn2d_sets.h: no guard.
#include "upfirdn2d_lanes.h"
#include "upfirdn2d_planes.h"
#undef LANES
#undef STREAM
#undef INDEX
#undef LOW
#undef HIGH
#undef EVEN
#undef ODD
#undef ORDERED
