"""LLVM: programs, processors, compiled code."""
