"""The ops that are Triton kernels, each registered with torch: `fused` has their functions."""
