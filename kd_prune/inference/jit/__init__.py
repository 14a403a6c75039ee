"""LLVM: programs, processors, compiled code, threads."""
