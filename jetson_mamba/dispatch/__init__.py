"""Which backend computes a call, and which way the call goes: through kernels, operators or plain
tensor operations."""
