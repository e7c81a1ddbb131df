// SPDX-License-Identifier: MIT
// The variants of benchmarks/hopper in the emulator, with the C interface of probe_library.cuh.
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#if defined(OCNET_BACKWARD)
#include "backward_variants.h"
namespace table = ocnet::backward_variants;
#else
#include "variants.h"
namespace table = ocnet::variants;
#endif

namespace {

// Forgets the arrays of a call when it ends.
struct Detacher {
  ~Detacher() { ocnet::emulator::detach_all(); }
};

void run(const char* name, int count, void* const* buffers, const int64_t* bytes,
         const int32_t* writable, const int64_t* arguments) {
  using namespace ocnet::probes;
  const Probe* const probe = find_in(name, table::kVariants);
  if (probe == nullptr) throw std::runtime_error(std::string("no probe is called ") + name);
  const Detacher detacher;
  for (int i = 0; i < count; ++i) {
    if (bytes[i] == 0) continue;
    ocnet::emulator::attach(("buffer " + std::to_string(i)).c_str(), buffers[i],
                            static_cast<size_t>(bytes[i]), writable[i] != 0);
  }
  const ocnet::KernelLauncher launch(probe->name);
  probe->run({buffers, bytes, arguments, launch});
}

}  // namespace

extern "C" {

const char* ocnet_run_probe(const char* name, int count, void* const* buffers, const int64_t* bytes,
                            const int32_t* writable, const int64_t* arguments) {
  static std::string words;
  try {
    run(name, count, buffers, bytes, writable, arguments);
    return nullptr;
  } catch (const std::exception& error) {
    words = error.what();
    return words.c_str();
  }
}

const char* ocnet_describe_device(char* text, int64_t bytes) {
  std::snprintf(text, static_cast<size_t>(bytes), "Emulator, 9.0");
  return nullptr;
}

}  // extern "C"
