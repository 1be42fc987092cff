"""The kernels on the CPU, by Numba."""
