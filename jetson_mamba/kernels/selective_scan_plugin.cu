// The selective scan's forward pass as a plugin of TensorRT calls it: the inputs that there are,
// then sizes of 32 bits, then the outputs. Its tensors are packed, and time is in one piece, since a
// plugin is one launch.
#define WITHOUT_ENTRIES
#include "selective_scan_forward.cu"

static_assert(!SEGMENTED && !COMPLEX, "a plugin is one launch, of real numbers");

// Grid: (channel blocks of all groups, batch, 1).
extern "C" __global__ void __launch_bounds__(THREADS, MINIMUM_BLOCKS) selective_scan_plugin(
    const number* u, const number* delta, const state* A, const void* B, const void* C,
#if HAS_D
    const float* D,
#endif
#if HAS_Z
    const number* z,
#endif
#if HAS_BIAS
    const float* bias,
#endif
    int dim, int group_channels, int seqlen, number* out
#if KEPT
    ,
    state* x
#endif
) {
    const long long row = seqlen, channels = dim;
    const long long of_batch = channels * row, of_matrix = DSTATE * row;
    const long long of_matrices = channels / group_channels * of_matrix;
    Arguments p = {};
    p.u = u, p.delta = delta, p.A = A;
    p.B = static_cast<const number*>(B), p.constant_B = static_cast<const state*>(B);
    p.C = static_cast<const number*>(C), p.constant_C = static_cast<const state*>(C);
#if HAS_D
    p.D = D;
#endif
#if HAS_BIAS
    p.bias = bias;
#endif
    p.out = out;
#if HAS_Z
    p.z = z, p.out_z = out;
#endif
#if KEPT
    p.x = x;
#endif
    p.dim = channels, p.group_channels = group_channels;
    p.seqlen = p.segment_length = row, p.segments = 1;
    p.u_batch = p.delta_batch = p.z_batch = p.out_batch = p.out_z_batch = of_batch;
    p.u_dim = p.delta_dim = p.z_dim = p.out_dim = p.out_z_dim = row;
    p.B_batch = p.C_batch = of_matrices;
    p.B_group = p.C_group = of_matrix, p.B_state = p.C_state = row;
    scan<false>(p);
}
