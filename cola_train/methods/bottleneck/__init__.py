"""What methods share whose linears are B s(A x), through a bottleneck of rank r."""
