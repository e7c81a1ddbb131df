// SPDX-License-Identifier: MIT
#include "inplace_abn_kernels.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "instruction_sets.h"
#include "numbers.h"
#include "vectors.h"

namespace ocnet::cpu {
namespace {

#define OCNET_KERNELS "inplace_abn_impl.h"
#include "each_instruction_set.h"

template <typename T, typename Element, bool Rows>
const AbnKernels<T, Element>& choose() {
#if OCNET_X86
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return avx512::table<T, Element, Rows>();
    case InstructionSet::kAvx2:
      return avx2::table<T, Element, Rows>();
    case InstructionSet::kPortable:
      break;
  }
#endif
  return portable::table<T, Element, Rows>();
}

}  // namespace

template <typename T, typename Element>
const AbnKernels<T, Element>& abn_kernels(bool rows) {
  return rows ? choose<T, Element, true>() : choose<T, Element, false>();
}

template const AbnKernels<float, float>& abn_kernels(bool);
template const AbnKernels<double, double>& abn_kernels(bool);
template const AbnKernels<float, c10::BFloat16>& abn_kernels(bool);
template const AbnKernels<float, c10::Half>& abn_kernels(bool);

}  // namespace ocnet::cpu
