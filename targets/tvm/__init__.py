"""TVM: Relax modules for CPU, Arm and CUDA, and the native program that runs them without Python."""
