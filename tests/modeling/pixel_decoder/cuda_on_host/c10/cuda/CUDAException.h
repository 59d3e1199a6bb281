#pragma once

#include <c10/util/Exception.h>

#define C10_CUDA_CHECK(call)                                                        \
  do {                                                                              \
    const auto error = (call);                                                      \
    TORCH_CHECK(error == cudaSuccess, "CUDA on the host: error ", int(error));      \
  } while (false)
