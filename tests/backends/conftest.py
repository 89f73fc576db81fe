"""The kernel library, compiled once per state of its sources, and its variants one by one.

With ``KERNELS_SANITIZE=address,undefined`` (a list for ``-fsanitize``) the library is built with these.
Python itself is not, so their runtime has to be loaded first:
``LD_PRELOAD=$(g++ -print-file-name=libasan.so)``.
"""

import os

import pytest

from nanollama.backends.native import build
from nanollama.backends.native.library import Kernels, Library
from nanollama.errors import BackendError

VARIANTS = ("portable", "avx2", "avx512")


@pytest.fixture(scope="session")
def kernel_library(pytestconfig: pytest.Config) -> Library:
    if build.find_compiler() is None:
        pytest.skip("the kernels can't be compiled here: no C++ compiler was found (install g++ or set CXX)")
    assert pytestconfig.cache is not None
    sanitizers = os.environ.get("KERNELS_SANITIZE", "")
    flags = (f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-O1", "-g") if sanitizers else ()
    path = pytestconfig.cache.mkdir("kernels") / f"kernels-{build.digest()}-{sanitizers.replace(',', '-')}.so"
    if not path.exists():
        build.build(path, flags)
    return Library(path)


@pytest.fixture(params=VARIANTS)
def kernels(request: pytest.FixtureRequest, kernel_library: Library) -> Kernels:
    try:
        return kernel_library.kernels(request.param)
    except BackendError:
        pytest.skip(f"this processor can't run the kernel variant {request.param}")


@pytest.fixture
def portable(kernel_library: Library) -> Kernels:
    return kernel_library.kernels("portable")
