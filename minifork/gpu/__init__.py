"""Rollouts on a GPU: the fused kernel, how it is compiled and launched, and CUDA graphs if it cannot run.

`backends.sample` picks the fastest way to run rollouts, on a CPU too.
"""
