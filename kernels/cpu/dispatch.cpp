// Which ISA tier this machine can run, and which one is in use.
#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace v4k {
namespace {

[[maybe_unused]] bool has_avx2() {
#ifdef V4K_X86
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

[[maybe_unused]] bool has_avx512() {
#ifdef V4K_X86
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

[[maybe_unused]] bool has_neon_dot() {
#if defined(__aarch64__) && defined(__linux__)
  return getauxval(AT_HWCAP) & (1UL << 20);  // HWCAP_ASIMDDP
#elif defined(__aarch64__) && defined(__APPLE__)
  return true;
#else
  return false;
#endif
}

// Lowest first; up to the one V4_ISA names, if it names one of them.
std::vector<const v4k_tier *> find_tiers() {
  std::vector<const v4k_tier *> tiers{&v4k_tier_scalar};
#ifdef V4K_X86
  if (has_avx2()) tiers.push_back(&v4k_tier_avx2);
  if (has_avx512()) tiers.push_back(&v4k_tier_avx512);
#elif defined(V4K_ARM)
  if (has_neon_dot()) tiers.push_back(&v4k_tier_neon);
#endif
  if (const char *cap = std::getenv("V4_ISA"))
    for (size_t i = 0; i < tiers.size(); ++i)
      if (!std::strcmp(tiers[i]->name, cap)) tiers.resize(i + 1);
  return tiers;
}

const std::vector<const v4k_tier *> &tiers() {
  static const auto *found = new std::vector<const v4k_tier *>(find_tiers());  // outlives every thread
  return *found;
}

std::atomic<const v4k_tier *> chosen{nullptr};

}  // namespace

const v4k_tier &tier() {
  const v4k_tier *t = chosen.load(std::memory_order_acquire);
  return t ? *t : *tiers().back();
}

}  // namespace v4k

extern "C" const char *v4k_isa(void) { return v4k::tier().name; }

extern "C" const char *v4k_isa_tiers(void) {
  static const auto *names = [] {
    auto *text = new std::string;
    for (const v4k_tier *t : v4k::tiers()) *text += (text->empty() ? "" : " ") + std::string(t->name);
    return text;
  }();
  return names->c_str();
}

extern "C" int v4k_set_isa(const char *name) {
  for (const v4k_tier *t : v4k::tiers())
    if (name && !std::strcmp(t->name, name)) {
      v4k::chosen.store(t, std::memory_order_release);
      return V4K_OK;
    }
  return V4K_EARGUMENT;
}
