// Windows 10 and later.
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <errno.h>
#include <process.h>
#include <wchar.h>

#include "memory.h"
#include "platform.h"
#include "v4k.h"

namespace v4k {
namespace {

struct Start {
  void (*work)(void *);
  void *context;
};

unsigned __stdcall enter(void *start) {
  const Start s = *static_cast<Start *>(start);
  unmake(static_cast<Start *>(start));
  s.work(s.context);
  return 0;
}

// The number that C has for what went wrong last.
int error_number() {
  switch (GetLastError()) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND:
    case ERROR_INVALID_NAME:
      return ENOENT;
    case ERROR_ACCESS_DENIED:
    case ERROR_SHARING_VIOLATION:
      return EACCES;
    case ERROR_TOO_MANY_OPEN_FILES:
      return EMFILE;
    case ERROR_INVALID_PARAMETER:
      return EINVAL;
    default:
      return EIO;
  }
}

SRWLOCK *lock_in(unsigned char *state) { return reinterpret_cast<SRWLOCK *>(state); }
CONDITION_VARIABLE *condition_in(unsigned char *state) { return reinterpret_cast<CONDITION_VARIABLE *>(state); }

// The path of a file as Windows takes it: one that is long, whole and behind a mark. NULL without memory; in `room`.
const wchar_t *path_in(Array<wchar_t> &room, const wchar_t *path) {
  const DWORD most = GetFullPathNameW(path, 0, nullptr, nullptr);
  if (most < MAX_PATH) return path;
  if (!room.reset(most + 8)) return nullptr;
  wchar_t *whole = room.get() + 8;
  GetFullPathNameW(path, most, whole, nullptr);
  if (wcsncmp(whole, L"\\\\", 2)) return wmemcpy(whole - 4, L"\\\\?\\", 4);
  if (whole[2] == L'?' || whole[2] == L'.') return whole;
  return wmemcpy(whole - 6, L"\\\\?\\UNC", 7);  // in the place of the first of two
}

HANDLE handle(int64_t file) { return reinterpret_cast<HANDLE>(static_cast<intptr_t>(file)); }

}  // namespace

Mutex::Mutex() { InitializeSRWLock(lock_in(state_)); }
Mutex::~Mutex() = default;
void Mutex::lock() { AcquireSRWLockExclusive(lock_in(state_)); }
void Mutex::unlock() { ReleaseSRWLockExclusive(lock_in(state_)); }

Condition::Condition() { InitializeConditionVariable(condition_in(state_)); }
Condition::~Condition() = default;
void Condition::wake_all() { WakeAllConditionVariable(condition_in(state_)); }
void Condition::wait(Mutex &mutex) {
  SleepConditionVariableSRW(condition_in(state_), lock_in(mutex.state_), INFINITE, 0);
}
void Condition::wait(Mutex &mutex, int64_t us) {
  SleepConditionVariableSRW(condition_in(state_), lock_in(mutex.state_), static_cast<DWORD>((us + 999) / 1000), 0);
}

int64_t now_us() {
  LARGE_INTEGER rate, now;
  QueryPerformanceFrequency(&rate);
  QueryPerformanceCounter(&now);
  return now.QuadPart / rate.QuadPart * 1000000 + now.QuadPart % rate.QuadPart * 1000000 / rate.QuadPart;
}

void give_way() { SwitchToThread(); }

void nap_us(int64_t us) { Sleep(static_cast<DWORD>((us + 999) / 1000)); }

int usable_cpus() {
  DWORD_PTR mine = 0, all = 0;
  GetProcessAffinityMask(GetCurrentProcess(), &mine, &all);  // 0: threads in more than one group of 64
  const int n = mine ? __builtin_popcountll(mine) : static_cast<int>(GetActiveProcessorCount(ALL_PROCESSOR_GROUPS));
  return n < 1 ? 1 : n > 1024 ? 1024 : n;
}

bool start_thread(size_t stack_bytes, void (*work)(void *), void *context, Thread *thread) {
  Start *start = make<Start>(work, context);
  if (!start) return false;
  const Thread made = _beginthreadex(nullptr, static_cast<unsigned>(stack_bytes), enter, start,
                                     STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
  if (!made) return unmake(start), false;
  if (thread)
    *thread = made;
  else
    CloseHandle(reinterpret_cast<HANDLE>(made));
  return true;
}

void join_thread(Thread thread) {
  WaitForSingleObject(reinterpret_cast<HANDLE>(thread), INFINITE);
  CloseHandle(reinterpret_cast<HANDLE>(thread));
}

void on_fork(void (*)()) {}

int64_t process_id() { return GetCurrentProcessId(); }

size_t page_bytes() {
  SYSTEM_INFO about;
  GetSystemInfo(&about);
  return about.dwPageSize;
}

void ask_for_pages(void *at, size_t bytes) {
  WIN32_MEMORY_RANGE_ENTRY range{at, bytes};
  PrefetchVirtualMemory(GetCurrentProcess(), 1, &range, 0);
}

bool has_dot_product() { return false; }
bool has_matrix_product() { return false; }

}  // namespace v4k

extern "C" void *v4k_reserve(int64_t bytes) {
  return bytes > 0 ? VirtualAlloc(nullptr, static_cast<SIZE_T>(bytes), MEM_RESERVE, PAGE_READWRITE) : nullptr;
}

extern "C" int v4k_commit(void *at, int64_t bytes) {
  if (!at || bytes < 0) return V4K_EARGUMENT;
  return !bytes || VirtualAlloc(at, static_cast<SIZE_T>(bytes), MEM_COMMIT, PAGE_READWRITE) ? V4K_OK : V4K_EMEMORY;
}

// Large pages need a right that users do not have.
extern "C" int v4k_large_pages(void *, int64_t) { return V4K_EARGUMENT; }

extern "C" int v4k_populate(void *, int64_t) { return V4K_EARGUMENT; }

extern "C" void v4k_discard(void *at, int64_t bytes) {
  if (bytes > 0) VirtualFree(at, static_cast<SIZE_T>(bytes), MEM_DECOMMIT);
}

extern "C" void v4k_release(void *at, int64_t) { VirtualFree(at, 0, MEM_RELEASE); }

extern "C" int64_t v4k_file_open(const char *path, int direct) {
  const int length = MultiByteToWideChar(CP_UTF8, 0, path, -1, nullptr, 0);
  const v4k::Array<wchar_t> name(length);
  if (!name) return -ENOMEM;
  if (!MultiByteToWideChar(CP_UTF8, 0, path, -1, name.get(), length)) return -ENOENT;
  v4k::Array<wchar_t> room;
  const wchar_t *place = v4k::path_in(room, name.get());
  if (!place) return -ENOMEM;
  const DWORD shared = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
  const HANDLE file = CreateFileW(place, GENERIC_READ, shared, nullptr, OPEN_EXISTING,
                                  direct ? FILE_FLAG_NO_BUFFERING : FILE_ATTRIBUTE_NORMAL, nullptr);
  return file == INVALID_HANDLE_VALUE ? -v4k::error_number() : static_cast<int64_t>(reinterpret_cast<intptr_t>(file));
}

extern "C" int64_t v4k_file_read(int64_t file, void *to, int64_t bytes, int64_t offset) {
  const DWORD most = 1u << 30;
  OVERLAPPED place{};
  place.Offset = static_cast<DWORD>(offset);
  place.OffsetHigh = static_cast<DWORD>(offset >> 32);
  DWORD count = 0;
  if (ReadFile(v4k::handle(file), to, bytes < most ? static_cast<DWORD>(bytes) : most, &count, &place)) return count;
  return GetLastError() == ERROR_HANDLE_EOF ? 0 : -v4k::error_number();
}

extern "C" int v4k_file_identity(int64_t file, int64_t identity[3]) {
  BY_HANDLE_FILE_INFORMATION about;
  if (!GetFileInformationByHandle(v4k::handle(file), &about)) return V4K_EARGUMENT;
  identity[0] = static_cast<int64_t>(about.nFileIndexHigh) << 32 | about.nFileIndexLow;
  identity[1] = static_cast<int64_t>(about.nFileSizeHigh) << 32 | about.nFileSizeLow;
  identity[2] = static_cast<int64_t>(about.ftLastWriteTime.dwHighDateTime) << 32 | about.ftLastWriteTime.dwLowDateTime;
  return V4K_OK;
}

extern "C" void v4k_file_forget(int64_t, int64_t, int64_t) {}

extern "C" void v4k_file_close(int64_t file) { CloseHandle(v4k::handle(file)); }
