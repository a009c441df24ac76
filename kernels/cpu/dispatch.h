// The ISA tier in use.
#ifndef V4K_DISPATCH_H
#define V4K_DISPATCH_H

#include "tier.h"

namespace v4k {

// Kernels of the tier in use.
const v4k_tier &tier();

}  // namespace v4k
#endif
