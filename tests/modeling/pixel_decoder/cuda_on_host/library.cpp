// The CUDA library of multi-scale deformable attention with its kernels on the host.

#include "cuda_launch.cu"

#include "ms_deform_attn_cuda.cpp"

namespace mask2former {
namespace {

// What the kernels declare as memory shared by a block; blocks run one after the other.
alignas(64) unsigned char shared_memory[48 * 1024];

}  // namespace
}  // namespace mask2former
