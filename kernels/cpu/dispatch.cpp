// Which ISA tier this machine can run, and which one is in use.
#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "platform.h"

#ifdef V4K_X86
#include <cpuid.h>
#endif

namespace v4k {
namespace {

#ifdef V4K_X86
// Asked of the processor itself: not every compiler's runtime answers __builtin_cpu_supports.
struct Cpuid {
  explicit Cpuid(unsigned leaf) { __get_cpuid_count(leaf, 0, &a, &b, &c, &d); }
  unsigned a = 0, b = 0, c = 0, d = 0;
};

// Whether the system keeps these registers when it switches threads.
bool keeps(unsigned registers) {
  if (!(Cpuid(1).c >> 27 & 1)) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & registers) == registers;
}

bool has_avx2() { return keeps(0x06) && Cpuid(1).c >> 12 & Cpuid(1).c >> 28 & Cpuid(7).b >> 5 & 1; }  // FMA, AVX, AVX2

bool has_avx512() {  // F, BW, VL; VNNI
  const unsigned wanted = 1u << 16 | 1u << 30 | 1u << 31;
  return has_avx2() && keeps(0xe6) && (Cpuid(7).b & wanted) == wanted && Cpuid(7).c >> 11 & 1;
}
#endif

// Those this machine can run, lowest first; up to the one V4_ISA names, if it names one of them.
struct Tiers {
  Tiers() {
    add(&v4k_tier_scalar);
#ifdef V4K_X86
    if (has_avx2()) add(&v4k_tier_avx2);
    if (has_avx512()) add(&v4k_tier_avx512);
#elif defined(V4K_ARM)
    if (has_dot_product()) add(&v4k_tier_neon);
    if (has_dot_product() && has_matrix_product()) add(&v4k_tier_i8mm);
#endif
    if (const char *cap = std::getenv("V4_ISA"))
      for (int i = 0; i < count; ++i)
        if (!std::strcmp(all[i]->name, cap)) count = i + 1;
    for (int i = 0; i < count; ++i) {
      if (i) std::strcat(names, " ");
      std::strcat(names, all[i]->name);
    }
  }

  void add(const v4k_tier *tier) { all[count++] = tier; }

  const v4k_tier *all[4];
  int count = 0;
  char names[64] = "";
};

const Tiers found;  // when the library is loaded

std::atomic<const v4k_tier *> chosen{nullptr};

}  // namespace

const v4k_tier &tier() {
  const v4k_tier *t = chosen.load(std::memory_order_acquire);
  return t ? *t : *found.all[found.count - 1];
}

}  // namespace v4k

extern "C" const char *v4k_isa(void) { return v4k::tier().name; }

extern "C" const char *v4k_isa_tiers(void) { return v4k::found.names; }

extern "C" int v4k_set_isa(const char *name) {
  for (int i = 0; i < v4k::found.count; ++i)
    if (name && !std::strcmp(v4k::found.all[i]->name, name)) {
      v4k::chosen.store(v4k::found.all[i], std::memory_order_release);
      return V4K_OK;
    }
  return V4K_EARGUMENT;
}
