// csrc/cuda/warp.cuh for a CPU: each thread of a block is a fiber, and the fibers run in turns. What
// threads do together is an exchange: all write, all take one turn, all read. Every thread of a block
// must therefore meet the same exchanges, as they do in kernels whose loops are the same for all.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#define __device__
#define __forceinline__ inline

using std::fmaxf;
using std::min;

namespace fastguide {

struct BFloat16 {};
struct Half {};

struct Pair {
  float low, high;
};

constexpr int kBlockThreads = 128;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done;
};

inline Fiber fibers[kBlockThreads];
inline ucontext_t scheduler;
inline struct { int x; } threadIdx;

// Lets every other thread reach its next turn.
inline void turn() { swapcontext(&fibers[threadIdx.x].context, &scheduler); }

inline void __syncthreads() { turn(); }

template <class T>
T exchanged(const T& mine, int lane) {
  static T slots[kBlockThreads];
  const int warp = threadIdx.x / 32 * 32;
  turn();
  slots[threadIdx.x] = mine;
  turn();
  return slots[warp + lane];
}

inline int lane() { return threadIdx.x % 32; }

inline float quad_sum(float x) {
  x += exchanged(x, lane() ^ 1);
  return x + exchanged(x, lane() ^ 2);
}

inline float quad_max(float x) {
  x = fmaxf(x, exchanged(x, lane() ^ 1));
  return fmaxf(x, exchanged(x, lane() ^ 2));
}

inline float number(uint16_t bits, BFloat16) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}

inline float number(uint16_t bits, Half) {
  _Float16 x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint16_t bits_of(float x, BFloat16) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return x != x ? 0x7FC0 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

inline uint16_t bits_of(float x, Half) {
  const _Float16 rounded = x;
  uint16_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return bits;
}

template <class T>
Pair unpack(uint32_t bits) {
  return {number(bits & 0xFFFF, T()), number(bits >> 16, T())};
}

template <class T>
uint32_t pack(float low, float high) {
  return bits_of(low, T()) | static_cast<uint32_t>(bits_of(high, T())) << 16;
}

template <bool TRANSPOSED>
void load_matrices(uint32_t (&out)[4], const uint16_t* row) {
  const int g = lane() / 4, t = lane() % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int at = TRANSPOSED ? 2 * t + i : g, column = TRANSPOSED ? g : 2 * t + i;
      pair[i] = exchanged(row, 8 * matrix + at)[column];
    }
    out[matrix] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}

// The product of a [16, 16] and b [16, 8], which are put together from the lanes.
template <class T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Lane {
    uint32_t a[4], b[2];
  };
  static Lane slots[kBlockThreads];
  turn();
  slots[threadIdx.x] = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  turn();
  const Lane* warp = slots + threadIdx.x / 32 * 32;
  const auto half = [](uint32_t bits, int odd) {
    return number(static_cast<uint16_t>(odd ? bits >> 16 : bits), T());
  };
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const int owner = k % 8 / 2;
      const float x = half(warp[row % 8 * 4 + owner].a[k / 8 * 2 + row / 8], k % 2);
      const float y = half(warp[column * 4 + owner].b[k / 8], k % 2);
      sum += static_cast<double>(x) * y;
    }
    c[i] = static_cast<float>(sum);
  }
}

// Runs `body` for every thread of one block.
inline void run_block(void (*body)()) {
  for (int i = 0; i < kBlockThreads; ++i) {
    Fiber& fiber = fibers[i];
    if (!fiber.stack) fiber.stack.reset(new char[1 << 17]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = 1 << 17;
    fiber.context.uc_link = nullptr;
    fiber.done = false;
    static void (*run)();
    run = body;
    makecontext(
        &fiber.context,
        +[] {
          run();
          fibers[threadIdx.x].done = true;
          turn();
        },
        0);
  }
  for (bool any = true; any;) {
    any = false;
    for (int i = 0; i < kBlockThreads; ++i) {
      if (fibers[i].done) continue;
      threadIdx.x = i;
      swapcontext(&scheduler, &fibers[i].context);
      any = any || !fibers[i].done;
    }
  }
}

}  // namespace fastguide
