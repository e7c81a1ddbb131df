// SPDX-License-Identifier: MIT
// Names and source lines for reports, from the module's own symbols and debug information.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include <cxxabi.h>
#include <dlfcn.h>

#include "emulator.h"

extern "C" char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" char _end[] __attribute__((visibility("hidden")));

namespace ocnet::emulator {

namespace {

std::string output_of(const std::string& command) {
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::string text;
  std::array<char, 256> chunk;
  while (pipe && std::fgets(chunk.data(), chunk.size(), pipe.get()) != nullptr) {
    text += chunk.data();
  }
  return text;
}

std::string addr2line(const std::string& options, uintptr_t address) {
  Dl_info info;
  if (dladdr(__ehdr_start, &info) == 0) return "";
  return output_of("addr2line -C " + options + " -e '" + info.dli_fname + "' " +
                   hex(address - reinterpret_cast<uintptr_t>(__ehdr_start)) + " 2>/dev/null");
}

// "csrc/common/tile.cuh:120" of an absolute path.
std::string from_the_root(const std::string& path) {
  for (const char* folder : {"/csrc/", "/tests/"}) {
    const size_t at = path.rfind(folder);
    if (at != std::string::npos) return path.substr(at + 1);
  }
  return path;
}

}  // namespace

bool in_this_module(uintptr_t address) {
  return address >= reinterpret_cast<uintptr_t>(__ehdr_start) &&
         address < reinterpret_cast<uintptr_t>(_end);
}

std::string kernel_name(const void* kernel) {
  Dl_info info;
  if (dladdr(kernel, &info) == 0 || info.dli_sname == nullptr) {
    const std::string text = addr2line("-f", reinterpret_cast<uintptr_t>(kernel));
    return text.substr(0, text.find('\n'));
  }
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status), std::free);
  std::string text = status == 0 ? name.get() : info.dli_sname;
  if (text.rfind("void ", 0) == 0) text = text.substr(5);
  // Without its parameters.
  return text.substr(0, text.rfind('('));
}

// The line, and the lines it was inlined into: "a.cuh:3 < b.cuh:7".
std::string source_line(Place place) {
  if (place == nullptr) return "an unknown place";
  // A return address is that of the next instruction.
  const std::string text = addr2line("-i", reinterpret_cast<uintptr_t>(place) - 1);
  std::string lines;
  for (size_t start = 0; start < text.size();) {
    const size_t end = text.find('\n', start);
    std::string line = text.substr(start, end - start);
    line = from_the_root(line.substr(0, line.find(" (discriminator")));
    if (!line.empty() && line[0] != '?') lines += (lines.empty() ? "" : " < ") + line;
    if (end == std::string::npos) break;
    start = end + 1;
  }
  return lines.empty() ? "address " + hex(reinterpret_cast<uintptr_t>(place)) : lines;
}

}  // namespace ocnet::emulator
