// Functions that CPU and CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define FASTGUIDE_INLINE __host__ __device__ __forceinline__
#else
#define FASTGUIDE_INLINE inline __attribute__((always_inline))
#endif
