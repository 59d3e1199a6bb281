// The parts of CUDA that our kernels use, computed on the host: for tests of their arithmetic where there is no GPU.
//
// The threads of a block are fibers of one thread of the host, run in turns; blocks run one after the other. A fiber that
// reaches a function of its warp waits until all lanes of the warp have; where some never come, the launch fails instead
// of hanging. Memory has no races here, so that those of a real device are not found.

#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 blockIdx, blockDim, threadIdx;  // of the fiber that runs

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace cuda_on_host {

constexpr unsigned kLanes = 32;
constexpr size_t kStackBytes = 64 * 1024;

struct Warp {
  unsigned arrived = 0, generation = 0;
  double slots[kLanes] = {};
};

struct Block {
  std::vector<Warp> warps;
  ucontext_t scheduler{};
  std::vector<ucontext_t> fibers;
  std::vector<bool> done;
  std::function<void()> body;
  unsigned running = 0;
  bool moved = false;  // whether any fiber got further since the scheduler last looked
};

inline Block* block = nullptr;

inline Warp& warp() {
  return block->warps[block->running / kLanes];
}

inline void run_fiber() {
  block->body();
  block->done[block->running] = true;
  block->moved = true;
}

// Waits for all lanes of the warp.
inline void meet(unsigned mask) {
  if (mask != 0xffffffffu) {
    throw std::logic_error("only whole warps are emulated");
  }
  Warp& mine = warp();
  const unsigned generation = mine.generation;
  if (++mine.arrived == kLanes) {
    mine.arrived = 0;
    ++mine.generation;
    block->moved = true;
    return;
  }
  while (mine.generation == generation) {
    swapcontext(&block->fibers[block->running], &block->scheduler);
  }
}

inline cudaError_t run_block(unsigned threads, const std::function<void()>& body) {
  if (threads % kLanes != 0) {
    return cudaErrorInvalidValue;
  }
  Block here;
  here.warps.resize(threads / kLanes);
  here.fibers.resize(threads);
  here.done.assign(threads, false);
  here.body = body;
  block = &here;
  const auto stacks = std::make_unique<unsigned char[]>(threads * kStackBytes);
  for (unsigned i = 0; i < threads; ++i) {
    getcontext(&here.fibers[i]);
    here.fibers[i].uc_stack.ss_sp = stacks.get() + i * kStackBytes;
    here.fibers[i].uc_stack.ss_size = kStackBytes;
    here.fibers[i].uc_link = &here.scheduler;
    makecontext(&here.fibers[i], &run_fiber, 0);
  }
  for (size_t left = threads; left > 0;) {
    here.moved = false;
    left = 0;
    for (unsigned i = 0; i < threads; ++i) {
      if (!here.done[i]) {
        here.running = threadIdx.x = i;
        swapcontext(&here.scheduler, &here.fibers[i]);
        left += !here.done[i];
      }
    }
    if (left > 0 && !here.moved) {
      return cudaErrorLaunchFailure;  // lanes wait for others that have left
    }
  }
  return cudaSuccess;
}

}  // namespace cuda_on_host

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  auto& slots = cuda_on_host::warp().slots;
  const unsigned lane = cuda_on_host::block->running % cuda_on_host::kLanes;
  static_assert(sizeof(T) <= sizeof(slots[0]));
  std::memcpy(&slots[lane], &value, sizeof(T));
  cuda_on_host::meet(mask);
  T other;
  std::memcpy(&other, &slots[lane ^ unsigned(distance)], sizeof(T));
  cuda_on_host::meet(mask);
  return other;
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_on_host::meet(mask);
}

template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}

template <typename... Expected, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Given&&... arguments) {
  blockDim = config->blockDim;
  for (unsigned i = 0; i < config->gridDim.x; ++i) {
    blockIdx = dim3(i);
    const cudaError_t error = cuda_on_host::run_block(blockDim.x, [&] { kernel(Expected(arguments)...); });
    if (error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}
