"""The kernels on CUDA devices, by Numba."""
