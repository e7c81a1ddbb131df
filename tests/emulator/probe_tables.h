// SPDX-License-Identifier: MIT
// Looking up a probe in the tables of several families.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "probe.h"

namespace ocnet::probes {

template <size_t count>
const Probe* find_in(const char* name, const Probe (&table)[count]) {
  for (const Probe& probe : table) {
    if (std::strcmp(probe.name, name) == 0) return &probe;
  }
  return nullptr;
}

// Null if no table has it.
template <typename... Tables>
const Probe* find_in_tables(const char* name, const Tables&... tables) {
  const Probe* found = nullptr;
  ((found = found != nullptr ? found : find_in(name, tables)), ...);
  return found;
}

template <typename... Tables>
std::vector<std::string> names_in_tables(const Tables&... tables) {
  std::vector<std::string> names;
  const auto add = [&](const auto& table) {
    for (const Probe& probe : table) names.emplace_back(probe.name);
  };
  (add(tables), ...);
  return names;
}

}  // namespace ocnet::probes
