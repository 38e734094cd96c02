"""Integer kernels as TIR, written for the dot-product instructions that a CPU has."""
