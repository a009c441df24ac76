# Compile for another system with the clang and the C libraries in ziglang (PyPI). From the environment: ZIG, the path of
# the program; ZIG_TARGET, as x86_64-linux-gnu.2.28. CMake reads this several times.
string(REPLACE "-" ";" parts $ENV{ZIG_TARGET})
list(GET parts 0 CMAKE_SYSTEM_PROCESSOR)
list(GET parts 1 system)
if(system MATCHES "^linux")
  set(CMAKE_SYSTEM_NAME Linux)
elseif(system MATCHES "^macos")
  set(CMAKE_SYSTEM_NAME Darwin)
  set(CMAKE_INSTALL_NAME_TOOL true)  # the library has no paths to change
else()
  set(CMAKE_SYSTEM_NAME Windows)
endif()
set(CMAKE_CXX_COMPILER ${CMAKE_CURRENT_LIST_DIR}/zig-c++)
