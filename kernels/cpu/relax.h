// A pause in a loop that waits for another thread.
#ifndef V4K_RELAX_H
#define V4K_RELAX_H

namespace v4k {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace v4k
#endif
