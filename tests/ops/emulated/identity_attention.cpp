// The CUDA kernel of identity_attention on a CPU, block after block.

#include "identity_attention.cuh"

using namespace fastguide;

namespace {

static_assert(kThreads == kBlockThreads);

Arguments arguments;
int64_t block;

template <class Way>
void run(int64_t rows) {
  static typename Way::Shared tile;
  const int64_t blocks = (arguments.queries + Way::kQueries - 1) / Way::kQueries * arguments.heads;
  for (block = 0; block < blocks * rows; ++block) {
    run_block([] { Way::run(arguments, block, tile); });
  }
}

template <class T>
void run_tensor_cores(int64_t rows) {
  if (arguments.dim <= 64) return run<TensorCores<T, 64>>(rows);
  if (arguments.dim <= 96) return run<TensorCores<T, 96>>(rows);
  run<TensorCores<T, 256>>(rows);
}

void run_fp32(int64_t rows) {
  if (arguments.dim <= 64) return run<Fp32<64>>(rows);
  run<Fp32<256>>(rows);
}

}  // namespace

// `strides`: (row, head, token) of q, k, v, context_k, context_v, then (row, key) of the mask.
extern "C" void identity_attention(const void* q, const void* k, const void* v,
                                   const void* context_k, const void* context_v, const bool* mask,
                                   const int64_t* strides, int64_t rows, int64_t heads,
                                   int64_t queries, int64_t keys, int64_t dim,
                                   float scale, bool aligned, int64_t type, void* out) {
  const auto view = [strides](const void* data, int i) {
    return Heads{data, strides[3 * i], strides[3 * i + 1], strides[3 * i + 2]};
  };
  arguments = {view(q, 0),
               view(k, 1),
               view(v, 2),
               view(context_k, 3),
               view(context_v, 4),
               mask,
               strides[15],
               strides[16],
               queries,
               static_cast<int>(heads),
               static_cast<int>(keys),
               static_cast<int>(dim),
               scale * kLog2E,
               aligned,
               out};
  if (type == 0) return run_fp32(rows);
  if (type == 1) return run_tensor_cores<BFloat16>(rows);
  run_tensor_cores<Half>(rows);
}
