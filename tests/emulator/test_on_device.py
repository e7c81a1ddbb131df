# SPDX-License-Identifier: MIT
"""Every trial on the GPU and in the emulator: bit for bit, or within the rounding that is documented.

A run of all of them appends a row to benchmarks/results/primitives/.
"""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch

from benchmarks.report import confirmed_table, read_rows
from tests.emulator import confirmed
from tests.emulator.cases import CASES
from tests.emulator.confirmed import Verdict, append_row, judge, row_of
from tests.emulator.device import Device, Library, ProbeError, UnavailableError, build
from tests.emulator.trials import Case

BY_NAME = {str(case): case for case in CASES}


@pytest.fixture(scope="module")
def verdicts(device):
    found: dict[Case, Verdict] = {}
    yield found
    if len(found) == len(CASES):
        print(f"\nrow appended to {append_row(found)}")


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_device_agrees_with_the_emulator(device, emulated, verdicts, case):
    verdict = verdicts[case] = judge(case, device, emulated)
    assert verdict.state in (confirmed.BITWISE, confirmed.ROUNDING), verdict.reason


@pytest.mark.native
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_library_says_so():
    """It loads with nothing but the C library: no driver, no torch."""
    try:
        library = Library(build()[0])
    except UnavailableError as reason:
        pytest.skip(str(reason))
    with pytest.raises(ProbeError, match="no probe is called nothing"):
        library.run("nothing", [], [])
    with pytest.raises(ProbeError, match="no CUDA device"):
        library.run("elect_one", [np.zeros(64, np.uint32)] * 2, [])
    with pytest.raises(ProbeError, match="no CUDA device"):
        library.describe()
    with pytest.raises(UnavailableError, match="no CUDA device"):
        Device()


STAND_IN = r"""
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <unistd.h>
extern "C" const char* ocnet_describe_device(char* text, int64_t) {
  std::strcpy(text, "Stand-in, 9.0");
  return nullptr;
}
extern "C" const char* ocnet_run_probe(const char* name, int count, void* const* host,
                                       const int64_t* bytes, const int32_t* writable,
                                       const int64_t* arguments) {
  if (std::strcmp(name, "fault") == 0) return "fault: CUDA says: misaligned address";
  if (std::strcmp(name, "crash") == 0) std::abort();
  if (std::strcmp(name, "hang") == 0) sleep(1000);
  for (int i = 0; i < count; ++i) {
    for (int64_t at = 0; writable[i] != 0 && at < bytes[i] / 4; ++at) {
      static_cast<uint32_t*>(host[i])[at] += static_cast<uint32_t>(arguments[0]);
    }
  }
  return nullptr;
}
"""


@pytest.mark.native
def test_a_probe_that_faults_or_hangs_does_not_stop_the_others(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("the stand-in for a device needs g++")
    source, path = tmp_path / "stand_in.cpp", tmp_path / "stand_in.so"
    source.write_text(STAND_IN)
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", path], check=True)
    device = Device(path, seconds=10)
    assert device.description == "Stand-in, 9.0"
    kept, changed = np.arange(4, dtype=np.uint32), np.arange(4, dtype=np.uint32)
    kept.flags.writeable = False
    device.run_probe("add", [kept, changed], [5])
    assert kept.tolist() == [0, 1, 2, 3]
    assert changed.tolist() == [5, 6, 7, 8]
    with pytest.raises(ProbeError, match="misaligned address"):
        device.run_probe("fault", [kept])
    with pytest.raises(ProbeError, match="crash: the process of the probe died"):
        device.run_probe("crash", [kept])
    device.seconds = 0.5
    with pytest.raises(ProbeError, match=r"hang: not done after 0\.5 s"):
        device.run_probe("hang", [kept])
    device.seconds = 10
    device.run_probe("add", [kept, changed], [1])
    assert changed.tolist() == [6, 7, 8, 9]
    device.close()


class Posing:
    """The emulator in the place of a device, with one bit of a result changed, or none."""

    is_emulator = False

    def __init__(self, emulated, flipped: int = 0) -> None:
        self.emulated = emulated
        self.flipped = flipped

    def run_probe(self, name, buffers, arguments=()):
        if name == "vote":
            raise ProbeError("vote: CUDA says: unspecified launch failure")
        self.emulated.run_probe(name, buffers, arguments)
        last = [buffer for buffer in buffers if buffer.flags.writeable][-1]
        last.view(np.uint32).reshape(-1)[7] ^= np.uint32(self.flipped)


@pytest.mark.native
@pytest.mark.parametrize(
    ("case", "flipped", "state"),
    [
        ("mma_bfloat16-reals", 0, "bitwise"),
        ("mma_bfloat16-reals", 1, "rounding"),
        ("mma_bfloat16-reals", 1 << 20, "differs"),
        ("mma_bfloat16-integers", 1, "differs"),
        ("barrier-1", 1, "differs"),
        ("vote-random", 0, "failed"),
    ],
)
def test_verdicts(emulated, case, flipped, state):
    verdict = judge(BY_NAME[case], Posing(emulated, flipped), emulated)
    assert verdict.state == state
    assert bool(verdict.reason) == (state in ("differs", "failed"))


def test_rows_and_table(tmp_path, monkeypatch):
    """A primitive is as good as the worst of its cases, and the last row of a device counts."""
    machine = {"device_name": "NVIDIA H200", "commit": "0123456789abcdef", "date": "2027-01-02T03"}
    monkeypatch.setattr(confirmed, "describe_machine", lambda _: machine)
    verdicts = dict.fromkeys(CASES, Verdict("bitwise"))
    append_row(verdicts, tmp_path)
    verdicts[BY_NAME["mma_bfloat16-reals"]] = Verdict("rounding")
    verdicts[BY_NAME["barrier-77"]] = Verdict("differs", "Arrays are not equal")
    path = append_row(verdicts, tmp_path)
    assert path.name == "nvidia-h200.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[1] == row_of(verdicts) | machine
    assert rows[1]["primitives"]["mma bfloat16"] == "rounding"
    assert rows[1]["primitives"]["barrier"] == "differs"
    assert rows[1]["reasons"] == {"barrier-77": "Arrays are not equal"}
    table = confirmed_table(read_rows([path])).splitlines()
    assert len(table) == 3
    assert "| NVIDIA H200 | 2027-01-02, 0123456789ab |" in table[2]
    assert table[2].endswith("| mma bfloat16 | barrier |")


def test_a_table_without_rows_says_that_nothing_ran():
    assert "not yet run on a device" in confirmed_table([])
