"""An interpreter of PTX: compiled kernels executed without a GPU, with checks that no GPU makes.

`python -m cola_kernels.tools.ptx --arch sm_90` compiles small launches of every kernel, executes
the PTX that Triton made of them and compares the results with fp64. The semantics are those of
the PTX ISA (docs.nvidia.com/cuda/parallel-thread-execution); only what the kernels use is here.
"""
