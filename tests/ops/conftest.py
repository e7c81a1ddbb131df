# SPDX-License-Identifier: MIT
"""The back ends under test, each on its device."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ocnet.ops import _extension, _hopper
from ocnet.ops._backends import SUPPORTED
from ocnet.ops.inplace_abn import cuda_backend as abn_cuda
from ocnet.ops.inplace_abn.problem import refuse_common as refuse_abn
from ocnet.ops.oc_attention import cuda_backend as attention_cuda
from ocnet.ops.oc_attention.autograd import BACKENDS
from ocnet.ops.oc_attention.problem import refuse_common as refuse_attention
from ocnet.ops.partitioned_attention import cuda_backend as partition_cuda
from ocnet.ops.partitioned_attention.problem import refuse_common as refuse_partition
from ocnet.ops.spatial_gather import cuda_backend as gather_cuda
from ocnet.ops.spatial_gather.problem import refuse_common as refuse_gather
from tests.ops.abn_running import Runner

DEVICES = {
    "reference": "cpu",
    "cpu": "cpu",
    "triton": "cuda",
    "cuda": "cuda",
    "hopper": "cuda",
    "emulated": "cpu",
    "emulated-hopper": "cpu",
}
SUBJECTS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.native),
    pytest.param("triton", marks=[pytest.mark.gpu, pytest.mark.triton]),
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.native]),
    pytest.param("emulated", marks=pytest.mark.native),
]
# Besides, in modules whose `subject` has these parameters: the forward kernels on Hopper's own
# instructions, for every call that they can take.
HOPPER_SUBJECTS = [
    *SUBJECTS,
    pytest.param("hopper", marks=[pytest.mark.gpu, pytest.mark.native]),
    pytest.param("emulated-hopper", marks=pytest.mark.native),
]
MANY = 2**31


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> str:
    """What is tested: a back end, or the CUDA one with some of its kernels, or in the emulator."""
    return request.param


@pytest.fixture
def backend(subject: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name that the op knows it by."""
    if subject.startswith("emulated"):
        request.getfixturevalue("_emulated_cuda_backend")
    if subject == "emulated-hopper":
        for kernels in (attention_cuda._HOPPER, partition_cuda._HOPPER):
            monkeypatch.setattr(kernels, "_half", "emulated")
            monkeypatch.setattr(kernels, "_refuse_device", lambda device: None)
    monkeypatch.setattr(_hopper, "FEW_KEYS", 0 if "hopper" in subject else MANY)
    return subject if subject in BACKENDS.names else "cuda"


@pytest.fixture
def _emulated_cuda_backend(emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA back ends take CPU tensors, and call the ops of the emulator."""
    emulator.configure()
    for backend, refuse in (
        (attention_cuda, refuse_attention),
        (partition_cuda, refuse_partition),
        (gather_cuda, refuse_gather),
        (abn_cuda, refuse_abn),
    ):
        monkeypatch.setattr(backend._BACKEND, "_half", "emulated")
        monkeypatch.setattr(
            backend, "supports", lambda problem, refuse=refuse: refuse(problem, "cpu") or SUPPORTED
        )


@pytest.fixture
def device(subject: str, request: pytest.FixtureRequest) -> str:
    if subject in ("cpu", "cuda", "hopper"):
        library = _extension.load(DEVICES[subject])
        if library.path is None and not request.config.getoption("--require-gpu"):
            pytest.skip(str(library.problem))
        assert library.problem is None, library.problem
    if subject == "hopper":
        _skip_unless_hopper()
    return DEVICES[subject]


def _skip_unless_hopper() -> None:
    refusal = attention_cuda._HOPPER._refuse_device(torch.device("cuda"))
    if refusal is not None:
        pytest.skip(f"kernels on Hopper's own instructions: {refusal}")


@pytest.fixture
def hopper_ops(subject: str, backend: str, device: str) -> Any:
    """The native ops of the subject, among them those on Hopper's own instructions."""
    if device == "cuda":
        _skip_unless_hopper()
    return getattr(torch.ops, f"ocnet_{subject}")


@pytest.fixture
def dtypes(subject: str) -> tuple[torch.dtype, ...]:
    """The dtypes that the back end takes."""
    if "hopper" in subject:
        return _hopper.DTYPES
    narrow = (torch.float32, torch.bfloat16, torch.float16)
    return narrow if subject == "triton" else (*narrow, torch.float64)


@pytest.fixture
def small(subject: str) -> bool:
    """Whether sizes must be small: the emulator looks at every access to memory."""
    return subject.startswith("emulated")


@pytest.fixture
def _cpu_kernels() -> Iterator[None]:
    """The C++ CPU kernels are there, on one thread."""
    library = _extension.load("cpu")
    if library.path is None:
        pytest.skip(str(library.problem))
    assert library.problem is None, library.problem
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def configure(subject: str, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Set how the emulated device is; a GPU is what it is."""
    if subject == "cuda":
        return lambda **_: None
    return request.getfixturevalue("emulator").configure


@pytest.fixture
def runner(subject: str, backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Runs calls of in-place ABN on the subject, and checks them."""
    return Runner(subject, device, monkeypatch)


@pytest.fixture
def hopper_backward(hopper_ops: Any, device: str) -> Callable[..., dict[str, torch.Tensor]]:
    """Runs calls of the native op of the backward kernels on Hopper's own instructions."""
    from tests.ops.hopper_backward import Backward

    return Backward(hopper_ops, device)
