"""The CPU backend: C++ kernels behind a C ABI, bound with ctypes."""
